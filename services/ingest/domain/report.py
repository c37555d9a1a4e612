"""What devices say about themselves: an alarm of their own, or their status."""

from typing import Annotated, TypeVar

import msgspec

from libs.common.errors import Conflict, FieldError, Invalid, Malformed
from services.ingest.domain.device import Status

T = TypeVar("T")

_NO_NUL = r"\A[^\x00]*\Z"
"""No text of PostgreSQL's has U+0000 in it."""

SEVERITIES = ("critical", "high", "medium", "low", "info")


class TooManyReports(Conflict):
    """The device has said more than it may."""

    slug = "too_many_reports"


class Alarm(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A device's own alarm: `{"severity": "high", "message": "oil low", "key": "oil"}`.

    The same key again is the same alarm; `"active": false` says that it is over.
    """

    message: Annotated[str, msgspec.Meta(min_length=1, max_length=1000, pattern=_NO_NUL)]
    severity: str = "medium"
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=_NO_NUL)] = "device"
    active: bool = True


class StatusWord(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A device's status in its own words: `{"status": "online", "reason": "booted"}`."""

    status: Status
    reason: Annotated[str, msgspec.Meta(max_length=500, pattern=_NO_NUL)] = ""


_alarm = msgspec.json.Decoder(Alarm)
_status = msgspec.json.Decoder(StatusWord)


def read_alarm(payload: bytes) -> Alarm:
    """Read an alarm. Raises Malformed or Invalid, saying what is wrong."""
    alarm = _read(_alarm, payload)
    if alarm.severity not in SEVERITIES:
        raise Invalid(
            f"severity is one of {', '.join(SEVERITIES)}",
            errors=[FieldError("#/severity", f"not a severity: {alarm.severity[:40]}")],
        )
    return alarm


def read_status(payload: bytes) -> StatusWord:
    """Read a status. Raises Malformed or Invalid, saying what is wrong."""
    return _read(_status, payload)


def _read(decoder: "msgspec.json.Decoder[T]", payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise Invalid(str(error), errors=[FieldError("#", str(error))]) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"not JSON: {error}") from error
