"""What a session asks of the endpoint that owns its socket, to be carried out in order."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from services.ingest.domain.channel import Channel
from services.ingest.protocols.mqtt.packets import Properties
from services.ingest.protocols.mqtt.topics import Aside


class Cause(StrEnum):
    """Why a connection ends, in few words."""

    DISCONNECTED = "disconnected"
    """The device said DISCONNECT."""
    LOST = "lost"
    """The network ended it."""
    SILENT = "silent"
    """Nothing came within the keep-alive, or no CONNECT."""
    REFUSED = "refused"
    """A CONNACK with a code other than 0 was sent."""
    VIOLATION = "violation"
    """A rule of the protocol was broken."""
    FORBIDDEN = "forbidden"
    """A topic that is not the device's."""
    UNSUPPORTED = "unsupported"
    """Good MQTT that is not offered here."""
    OVER_QUOTA = "over quota"
    """More messages than a device may send, for too long."""
    ENDED = "ended"
    """The endpoint ended it, for a reason of its own."""


class Send(Struct, frozen=True, gc=False):
    """Write `data` to the socket."""

    data: bytes


class Authenticate(Struct, frozen=True, gc=False):
    """Find out whether `password` is the device's token; then call `accepted` or `refused`.

    Without a `device_id` the token alone says who it is: set the session's before `accepted`. What
    comes `by_certificate` has proven itself by the one it showed in its TLS handshake. If it `resumes` its session, hand what is kept of that to `accepted`; else see that it is forgotten.
    """

    device_id: UUID | None
    password: bytes
    resumes: bool = False
    by_certificate: bool = False


class Deliver(Struct, frozen=True, gc=False):
    """Take a message. If `qos` is not 0, `acknowledge` its `packet_id` when it is safe.

    `received_at` of a redelivery is when the message came for the first time, where that is known.
    A will has a `delay_s`: it is to be taken once that is over, unless the device is back by then.
    """

    channel: Channel
    payload: bytes
    packet_id: int
    qos: int
    received_at: datetime
    properties: Properties | None = None
    delay_s: int | None = None


class SaidAside(Struct, frozen=True, gc=False):
    """Deal with a message that is not simply stored. Acknowledged, and received, as a Deliver is."""

    aside: Aside
    topic: str
    payload: bytes
    packet_id: int
    qos: int
    received_at: datetime


class Subscribed(Struct, frozen=True, gc=False):
    """Commands can be sent from now on."""


class Unsubscribed(Struct, frozen=True, gc=False):
    """Commands can be sent no longer."""


class CommandAcknowledged(Struct, frozen=True, gc=False):
    """The device has the command that was sent with this packet id, or, by `code`, refuses it."""

    packet_id: int
    code: int = 0


class Room(Struct, frozen=True, gc=False):
    """Another command can be sent, where the device takes so few at once that there was no room."""


class Keep(Struct, frozen=True, gc=False):
    """Write `kept` down, and then, when that is safe, `answer` to the socket."""

    answer: bytes


class Close(Struct, frozen=True, gc=False):
    """Close the connection, after what is still to be sent. `reason` is for the log."""

    cause: Cause
    reason: str


Action = (
    Send
    | Authenticate
    | Deliver
    | SaidAside
    | Subscribed
    | Unsubscribed
    | CommandAcknowledged
    | Room
    | Keep
    | Close
)
