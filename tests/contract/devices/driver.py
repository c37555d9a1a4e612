"""What every protocol's client must be able to do for the contract suite, and how it says what it cannot.

A protocol joins the suite with one file: a class that is a `DeviceDriver`, and its line in
`drivers.py`. A driver is a *real* client of the protocol, a library that others wrote where there is
one; it shares no code with the platform.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol, Self
from uuid import UUID

import httpx2


class Promise(StrEnum):
    """A row of the table in `services/ingest/protocols/README.md`, which the suite holds a protocol to."""

    KNOWS_SENDERS = "unknown sender"
    DURABLE = "acknowledges when durable on the bus"
    ONCE = "duplicates stored once"
    BAD_INPUT = "bad input"
    TOO_LARGE = "too large a message"
    COMMANDS = "commands to the device"
    REVOCATION = "revocation cuts it off"
    SURVIVES_KILL = "killed at the worst moment, loses nothing acknowledged"


@dataclass(frozen=True, slots=True)
class Site:
    """Where a running ingest is met."""

    host: str
    port: int
    """Of the driver's own door: what its `port_setting` names."""
    http: httpx2.AsyncClient
    """A user who may do everything in the tenant, for what a protocol needs set up."""
    headers: dict[str, str]
    """What this user's requests carry; empty where there is no such user, and all is set up already."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A registered device, and what it shows."""

    device_id: UUID
    token: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a device measured: `ts` in ms since 1970; None leaves the time to the platform."""

    values: Mapping[str, float | bool | str]
    ts: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as devices write it in JSON."""
        return {"values": dict(self.values)} | ({} if self.ts is None else {"ts": self.ts})


def to_json(readings: Sequence[Reading]) -> bytes:
    """Write one reading as an object, several as an array."""
    written = [reading.as_json() for reading in readings]
    return json.dumps(written[0] if len(written) == 1 else written).encode()


@dataclass(frozen=True, slots=True)
class CommandSeen:
    """A command as it reached the device."""

    id: str
    name: str
    params: dict[str, Any]


def what_became(status: str, result: object, error: str | None) -> dict[str, Any]:
    """Return what a device says of a command: what it has no word for is left out."""
    said = {"status": status, "result": result, "error": error}
    return {key: value for key, value in said.items() if value is not None}


class NotLetIn(Exception):
    """The platform did not let the device in, and said so."""


class Refused(Exception):
    """The platform answered that it does not take this message."""


class Cut(Exception):
    """The platform ended the connection, or will not talk any more."""


class DeviceDriver(Protocol):
    """A device, by one protocol."""

    name: ClassVar[str]
    """Stable: it stands in the tests' ids."""
    column: ClassVar[str]
    """How the heading of its column in the README's table begins."""
    port_setting: ClassVar[str]
    """Which of ingest's settings names its port, such as `mqtt_port`; the running app's state has the port
    that was taken under the same name. "http" for the doors that HTTP serves; "amqp" for a broker."""
    exempt: ClassVar[Mapping[Promise, str]]
    """Which promises it does not make, each with the reason, in the words of the README's table."""

    @classmethod
    async def connect(cls, site: Site, device: Identity) -> Self:
        """Come in as the device. Raises NotLetIn, or Cut where the protocol has no words for it."""
        ...

    async def send(self, *readings: Reading, within_s: float = 30.0) -> None:
        """Send one message of these readings; return when it is acknowledged.

        Raises Refused, Cut, or TimeoutError if nothing was heard within the time.
        """
        ...

    async def send_raw(self, payload: bytes) -> None:
        """Send a message with a payload that may be no telemetry at all; as `send`."""
        ...

    async def next_command(self) -> CommandSeen:
        """Return the next command that reaches the device, within 15 s."""
        ...

    async def reply(
        self,
        command: CommandSeen,
        status: str,
        *,
        result: object = None,
        error: str | None = None,
    ) -> None:
        """Say what became of a command: acknowledged, succeeded or failed."""
        ...

    async def is_cut(self) -> bool:
        """Whether the platform has ended it: closed the connection, or refuses what it says."""
        ...

    async def close(self) -> None:
        """Leave in good order; nothing happens if it is over already."""
        ...
