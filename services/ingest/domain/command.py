"""A command to a device, and what becomes of it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from libs.common.errors import FieldError, Invalid, Malformed, NotFound
from services.ingest.domain.document import fault_of

MOST_BYTES = 16_384
"""How large the parameters of a command may be as JSON, and what a device answers."""
LONGEST_NAME = 128
LONGEST_ERROR = 2_000


class UnknownCommand(NotFound):
    """The device answers to what was never sent to it."""

    slug = "unknown_command"


class CommandStatus(StrEnum):
    """How far a command has come."""

    QUEUED = "queued"
    """Waits until the device is there."""
    SENT = "sent"
    """On its way; nobody has said yet that it arrived."""
    ACKNOWLEDGED = "acknowledged"
    """The device has it."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    """Its time was over before it was sent."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more becomes of it."""
        return self in _FINAL


_FINAL = frozenset({CommandStatus.SUCCEEDED, CommandStatus.FAILED, CommandStatus.EXPIRED})


class Delivered(StrEnum):
    """What a way down can say once a command has left by it."""

    SENT = "sent"
    """The protocol has no answer to tell more."""
    ACKNOWLEDGED = "acknowledged"
    """The device's own end has said that it arrived."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A command as a device gets it. Times are UTC."""

    id: UUID
    name: str
    params: dict[str, Any]
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Command:
    """A command to a device. Times are UTC.

    A two-way command is done when the device has answered, at the latest `timeout` after it was
    sent; a one-way command when it has left, or arrived where the protocol can tell.
    """

    id: UUID
    device_id: UUID
    name: str
    params: dict[str, Any]
    two_way: bool
    timeout: timedelta
    status: CommandStatus
    created_by: str
    """Who asked for it: a user's id, or `rule:` and the rule's."""
    created_at: datetime
    expires_at: datetime
    sent_at: datetime | None = None
    acknowledged_at: datetime | None = None
    completed_at: datetime | None = None
    attempts: int = 0
    """How often it was sent."""
    result: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to a command, and when: it is written once and stays."""

    at: datetime
    status: CommandStatus
    detail: str


class Reply(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a device says became of a command.

    `{"id": "…", "status": "succeeded", "result": {"rpm": 900}}`; `acknowledged` says that it has it
    and is at it, `failed` that it could not, with the reason in `error`.
    """

    id: UUID
    status: Literal["acknowledged", "succeeded", "failed"]
    result: Any = None
    error: Annotated[str, msgspec.Meta(max_length=LONGEST_ERROR)] | None = None


_reply = msgspec.json.Decoder(Reply)
_encoder = msgspec.json.Encoder()


def numbered(command_id: UUID) -> int:
    """Return a command's number, for protocols that have 31 bits to name it by."""
    return command_id.int & 0x7FFF_FFFF


def to_json(outgoing: Outgoing) -> bytes:
    """Return a command as all protocols send it down: `{"id", "name", "params", "expires_at"}`."""
    return _encoder.encode(
        {
            "id": outgoing.id,
            "name": outgoing.name,
            "params": outgoing.params,
            "expires_at": outgoing.expires_at.astimezone(UTC),
        }
    )


def read_reply(payload: bytes) -> Reply:
    """Read a device's answer to a command. Raises Malformed or Invalid, saying what is wrong."""
    try:
        reply = _reply.decode(payload)
    except msgspec.ValidationError as error:
        raise Invalid(str(error), errors=[FieldError("#", str(error))]) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"not JSON: {error}") from error
    check_storable(reply.result, "#/result")
    check_storable(reply.error, "#/error")
    return reply


def check_storable(document: object, pointer: str) -> None:
    """Raise Invalid if a JSON document is more than is kept, or is not read alike by everybody."""
    fault = fault_of(document)
    if fault is None:
        size = len(_encoder.encode(document))
        fault = f"has {size} bytes, and {MOST_BYTES} are kept" if size > MOST_BYTES else None
    if fault is not None:
        raise Invalid(f"{pointer} {fault}", errors=[FieldError(pointer, fault)])
