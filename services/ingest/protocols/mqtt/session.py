"""One device's MQTT connection as a state machine: bytes and time in, actions out, no I/O.

The endpoint that owns the socket makes a `Session` when a connection is accepted and then

- carries out, in order, the actions returned by `receive` (bytes came), `accepted` or `refused`
  (what became of an `Authenticate`), `tick` (the `deadline` is past), `close` (we end it) and
  `connection_lost` (the peer is gone);
- calls `acknowledge` when messages handed out by `Deliver` are safe, and sends what it returns;
- after each of these reads from the socket only while `is_reading`;
- calls `publish_command` to send a command while `is_subscribed`.

After a `Close` no action follows, whatever is called. Two clocks go in: `at` is the time of day (an
aware UTC datetime, handed out again as `received_at`), `now` is in seconds and never runs
backwards (the event loop's `time()`), so that setting the machine's clock cuts nobody off.

Client id and user name are both the device's id, the password is its token. A device may publish to
`v1/devices/{its id}/telemetry`, `/status` and `/alerts`, and subscribe to `/commands`. MQTT 3.1.1
has no way to refuse a single message, so one for any other topic ends the connection.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from uuid import UUID

from msgspec import Struct

from services.ingest.domain.channel import Channel
from services.ingest.protocols.mqtt.codec import (
    PINGRESP,
    SUBSCRIPTION_REFUSED,
    Connect,
    ConnectCode,
    Decoder,
    Disconnect,
    Packet,
    Pingreq,
    ProtocolViolation,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    UnsupportedConnect,
    Will,
    encode_connack,
    encode_pubacks,
    encode_publish,
    encode_suback,
    encode_unsuback,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost."""

    max_packet_size: int = 262_144
    """Bytes of the largest packet taken, its header included."""
    connect_timeout: float = 10.0
    """Seconds from the connection to its CONNECT, and from there to the outcome."""
    held_bytes: int = 65_536
    """Bytes taken after the CONNECT's own segment while its outcome is open."""
    receive_window: int = 1_000
    """QoS 1 messages taken and not yet acknowledged before reading pauses. What a segment holds
    beyond it is still handed out."""
    send_window: int = 100
    """QoS 1 commands sent and not yet acknowledged by the device."""
    remembered_receipts: int = 128
    """Acknowledged packet ids whose time of receipt is kept for a redelivery."""


class Cause(StrEnum):
    """Why a connection ends, in few words, for metrics."""

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
    ENDED = "ended"
    """The endpoint ended it, for a reason of its own."""


class Send(Struct, frozen=True, gc=False):
    """Write `data` to the socket."""

    data: bytes


class Authenticate(Struct, frozen=True, gc=False):
    """Find out whether `password` is the device's token; then call `accepted` or `refused`."""

    device_id: UUID
    password: bytes


class Deliver(Struct, frozen=True, gc=False):
    """Take a message. If `qos` is 1, `acknowledge` its `packet_id` (else 0) when it is safe.

    `received_at` of a redelivery is when the message came for the first time, where that is known.
    """

    channel: Channel
    payload: bytes
    packet_id: int
    qos: int
    dup: bool
    received_at: datetime
    is_will: bool = False


class Subscribed(Struct, frozen=True, gc=False):
    """Commands can be sent from now on."""


class Unsubscribed(Struct, frozen=True, gc=False):
    """Commands can be sent no longer."""


class CommandAcknowledged(Struct, frozen=True, gc=False):
    """The device has the QoS 1 command that was sent with this packet id."""

    packet_id: int


class Close(Struct, frozen=True, gc=False):
    """Close the connection, after what is still to be sent. `reason` is for the log."""

    cause: Cause
    reason: str


Action = Send | Authenticate | Deliver | Subscribed | Unsubscribed | CommandAcknowledged | Close


class Command(Struct, frozen=True, gc=False):
    """A command on its way: `data` to be sent, `packet_id` 0 when no answer will come."""

    packet_id: int
    data: bytes


class Receipts:
    """When recently acknowledged messages of one device were first received.

    A device that missed a PUBACK sends its message again, with DUP and the same packet id, mostly
    on its next connection: hand the old session's `receipts` to the new one. A packet id alone says
    little, since it is free for another message once acknowledged, so the payload must be equal.
    """

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[int, tuple[datetime, int]] = {}

    def first_received(self, packet_id: int, fingerprint: int) -> datetime | None:
        """Return when the message came first, None if it is not remembered."""
        entry = self._entries.get(packet_id)
        if entry is None or entry[1] != fingerprint:
            return None
        return entry[0]

    def remember(self, packet_id: int, entry: tuple[datetime, int]) -> None:
        """Keep (first received, fingerprint); the oldest goes when there are too many."""
        entries = self._entries
        entries.pop(packet_id, None)
        entries[packet_id] = entry
        # Two, so that what `remember_unacknowledged` put beyond the size goes little by little.
        for _ in range(min(2, len(entries) - self._size)):
            del entries[next(iter(entries))]

    def remember_unacknowledged(self, entries: dict[int, tuple[datetime, int]]) -> None:
        """Keep all that were on their way when the connection ended: these will come again."""
        kept = self._entries
        for packet_id, entry in entries.items():
            kept.pop(packet_id, None)
            kept[packet_id] = entry
        for packet_id in list(kept)[: -max(self._size, len(entries), 1)]:
            del kept[packet_id]


_NEXT = timedelta(microseconds=1)
"""What came in one segment came one after the other: messages without a time of their own would
otherwise share one, and only the first be stored."""


class _Phase(Enum):
    CONNECTING = "no CONNECT yet"
    AUTHENTICATING = "CONNECT is here, its outcome is not"
    OPEN = "accepted"
    CLOSED = "closed"


class Session:
    """One connection of one device; the module says how to use it."""

    __slots__ = (
        "_channels",
        "_command_topic",
        "_decoder",
        "_heard",
        "_held",
        "_held_bytes",
        "_is_full",
        "_is_paused",
        "_keep_alive",
        "_last_command_id",
        "_limits",
        "_phase",
        "_safe",
        "_subscriptions",
        "_telemetry_topic",
        "_unacknowledged",
        "_unanswered_commands",
        "_will",
        "device_id",
        "receipts",
    )

    def __init__(self, limits: Limits, *, now: float) -> None:
        self.device_id: UUID | None = None
        """The device, from its CONNECT on; proven only once accepted."""
        self.receipts = Receipts(limits.remembered_receipts)
        """For the device's next session."""
        self._limits = limits
        self._decoder = Decoder(limits.max_packet_size)
        self._phase = _Phase.CONNECTING
        self._heard = now
        self._keep_alive = 0
        self._will: Will | None = None
        # What came between a CONNECT and its outcome, and when.
        self._held: list[tuple[Packet, datetime]] = []
        self._held_bytes = 0
        self._is_paused = False
        self._is_full = False
        # No topic is empty, so nothing takes the straight way before the device is accepted.
        self._telemetry_topic = b""
        self._channels: dict[bytes, Channel] = {}
        self._command_topic = b""
        # Packet id to (first received, fingerprint), in the order received. PUBACKs must leave in
        # that order [MQTT-4.6.0-2], so what is safe before its predecessors waits in `_safe`.
        self._unacknowledged: dict[int, tuple[datetime, int]] = {}
        self._safe: set[int] = set()
        # Topic filter to granted QoS.
        self._subscriptions: dict[bytes, int] = {}
        self._last_command_id = 0
        self._unanswered_commands: set[int] = set()

    @property
    def is_closed(self) -> bool:
        """Nothing more will come of this session."""
        return self._phase is _Phase.CLOSED

    @property
    def is_reading(self) -> bool:
        """More bytes are welcome: not paused, the window not full, no CONNECT being looked at."""
        return not (self._is_paused or self._is_full) and self._phase in (
            _Phase.CONNECTING,
            _Phase.OPEN,
        )

    @property
    def is_subscribed(self) -> bool:
        """The device wants its commands."""
        return bool(self._subscriptions) and self._phase is _Phase.OPEN

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, on the clock of `now`; None without a keep-alive or while not reading.

        It moves with everything received: set one timer, and on its firing look here again.
        """
        match self._phase:
            case _Phase.CONNECTING | _Phase.AUTHENTICATING:
                return self._heard + self._limits.connect_timeout
            case _Phase.OPEN if self._keep_alive and self.is_reading:
                return self._heard + 1.5 * self._keep_alive
        return None

    def receive(
        self, data: bytes | bytearray | memoryview, at: datetime, now: float
    ) -> list[Action]:
        """Take what the socket gave."""
        actions: list[Action] = []
        phase = self._phase
        if phase is _Phase.CLOSED:
            return actions
        violation: ProtocolViolation | None = None
        try:
            packets = self._decoder.feed(data)
        except ProtocolViolation as caught:
            violation = caught
            packets = caught.packets
        if packets and phase is _Phase.OPEN:
            self._heard = now
        if phase is _Phase.AUTHENTICATING:
            self._held_bytes += len(data)
            if self._held_bytes > self._limits.held_bytes:
                self._end(Cause.VIOLATION, "too much sent before the CONNACK", at, actions)
                return actions

        append = actions.append
        telemetry_topic = self._telemetry_topic
        unacknowledged = self._unacknowledged
        telemetry = Channel.TELEMETRY
        for packet in packets:
            # The straight way for nearly every packet there is.
            if (
                packet.__class__ is Publish
                and packet.topic == telemetry_topic
                and packet.qos == 1
                and not packet.dup
                and (packet_id := packet.packet_id) not in unacknowledged
            ):
                payload = packet.payload
                unacknowledged[packet_id] = (at, hash(payload))
                append(Deliver(telemetry, payload, packet_id, 1, False, at))
                at += _NEXT
                continue
            self._take(packet, at, now, actions)
            if packet.__class__ is Publish:
                at += _NEXT
            if self._phase is _Phase.CLOSED:
                return actions

        if violation is not None:
            self._end(Cause.VIOLATION, violation.reason, at, actions)
        elif len(unacknowledged) >= self._limits.receive_window:
            self._is_full = True
        return actions

    def accepted(self, now: float, *, receipts: Receipts | None = None) -> list[Action]:
        """The token is right: welcome the device and take what it sent meanwhile.

        `receipts` are those of its last session. Nothing happens unless an Authenticate is open.
        """
        actions: list[Action] = []
        if self._phase is not _Phase.AUTHENTICATING or self.device_id is None:
            return actions
        self._phase = _Phase.OPEN
        self._heard = now
        self._telemetry_topic = _own_topic(self.device_id, Channel.TELEMETRY)
        if receipts is not None:
            self.receipts = receipts
        actions.append(Send(encode_connack(ConnectCode.ACCEPTED)))
        held, self._held = self._held, []
        for packet, received_at in held:
            self._take(packet, received_at, now, actions)
            if self.is_closed:
                return actions
        self._is_full = len(self._unacknowledged) >= self._limits.receive_window
        return actions

    def refused(self, code: ConnectCode) -> list[Action]:
        """The device may not in. Nothing happens unless an Authenticate is open."""
        actions: list[Action] = []
        if self._phase is _Phase.AUTHENTICATING:
            self._refuse(code, code.name.lower().replace("_", " "), actions)
        return actions

    def acknowledge(self, packet_ids: Iterable[int], now: float) -> bytes:
        """Note that these QoS 1 messages are safe; return the PUBACKs that may leave, maybe none.

        They leave in the order the messages came, so one may wait for another before it. Each
        leaves once; packet ids that are not open are passed over. Works on after a pause.
        """
        unacknowledged = self._unacknowledged
        safe = self._safe
        safe.update([packet_id for packet_id in packet_ids if packet_id in unacknowledged])
        leaving = []
        for packet_id in unacknowledged:
            if packet_id not in safe:
                break
            leaving.append(packet_id)
        remember = self.receipts.remember
        for packet_id in leaving:
            remember(packet_id, unacknowledged.pop(packet_id))
        safe.difference_update(leaving)
        if self._is_full and len(unacknowledged) <= self._limits.receive_window // 2:
            self._is_full = False
            self._heard = now
        return encode_pubacks(leaving)

    def publish_command(self, payload: bytes, *, qos: int) -> Command | None:
        """Return the command to send, at no more than the QoS granted.

        None while the device is not subscribed, or has left `send_window` commands unanswered:
        keep the command until a Subscribed or a CommandAcknowledged.
        """
        if not self.is_subscribed:
            return None
        packet_id = 0
        qos = min(qos, max(self._subscriptions.values()))
        if qos:
            unanswered = self._unanswered_commands
            if len(unanswered) >= self._limits.send_window:
                return None
            packet_id = self._last_command_id % 65_535 + 1
            while packet_id in unanswered:
                packet_id = packet_id % 65_535 + 1
            self._last_command_id = packet_id
            unanswered.add(packet_id)
        return Command(
            packet_id,
            encode_publish(self._command_topic, payload, packet_id=packet_id, qos=qos),
        )

    def pause(self) -> None:
        """Stop reading until `resume`, and with it the keep-alive: the silence is our doing."""
        self._is_paused = True

    def resume(self, now: float) -> None:
        """Read again after `pause`; the keep-alive starts anew."""
        if self._is_paused:
            self._is_paused = False
            self._heard = now

    def tick(self, at: datetime, now: float) -> list[Action]:
        """End the connection if its deadline is past."""
        actions: list[Action] = []
        deadline = self.deadline
        if deadline is None or now < deadline:
            return actions
        if self._phase is _Phase.AUTHENTICATING:
            self._refuse(ConnectCode.SERVER_UNAVAILABLE, "authentication took too long", actions)
        elif self._phase is _Phase.CONNECTING:
            self._end(Cause.SILENT, "no CONNECT in time", at, actions)
        else:
            self._end(Cause.SILENT, f"nothing in 1.5 times {self._keep_alive} s", at, actions)
        return actions

    def close(self, reason: str, at: datetime) -> list[Action]:
        """End the connection from our side: the device is revoked, or came by another one."""
        actions: list[Action] = []
        if not self.is_closed:
            self._end(Cause.ENDED, reason, at, actions)
        return actions

    def connection_lost(self, at: datetime) -> list[Action]:
        """Note that the connection is gone. Held packets of an undecided CONNECT are forgotten."""
        actions: list[Action] = []
        if not self.is_closed:
            self._end(Cause.LOST, "connection lost", at, actions)
        return actions

    def _take(self, packet: Packet, at: datetime, now: float, actions: list[Action]) -> None:
        """Take one packet, of any kind and in any phase but CLOSED."""
        if self._phase is _Phase.AUTHENTICATING:
            self._held.append((packet, at))
            return
        match packet:
            case Publish():
                self._take_publish(packet, at, actions)
            case Pingreq():
                actions.append(Send(PINGRESP))
            case Puback(packet_id):
                # An unknown one may answer a command of an earlier connection.
                if packet_id in self._unanswered_commands:
                    self._unanswered_commands.discard(packet_id)
                    actions.append(CommandAcknowledged(packet_id))
            case Subscribe():
                self._take_subscribe(packet, actions)
            case Unsubscribe():
                self._take_unsubscribe(packet, actions)
            case Connect():
                self._take_connect(packet, now, actions)
            case UnsupportedConnect(name, level):
                self._refuse(
                    ConnectCode.UNACCEPTABLE_PROTOCOL_LEVEL,
                    f"protocol {name!r} level {level}",
                    actions,
                )
            case Disconnect():
                self._will = None
                self._end(Cause.DISCONNECTED, "DISCONNECT", at, actions)
            case Pubrec() | Pubrel() | Pubcomp():
                self._end(Cause.UNSUPPORTED, "QoS 2", at, actions)

    def _take_connect(self, packet: Connect, now: float, actions: list[Action]) -> None:
        if not packet.client_id:
            self._refuse(ConnectCode.IDENTIFIER_REJECTED, "an empty client id", actions)
            return
        if packet.username is None or packet.password is None:
            self._refuse(ConnectCode.NOT_AUTHORIZED, "no credentials", actions)
            return
        if packet.client_id != packet.username:
            self._refuse(ConnectCode.IDENTIFIER_REJECTED, "client id and user name differ", actions)
            return
        device_id = _read_device_id(packet.username)
        if device_id is None:
            self._refuse(ConnectCode.BAD_CREDENTIALS, "the user name is no device id", actions)
            return
        channels = {_own_topic(device_id, channel): channel for channel in Channel}
        if packet.will is not None and packet.will.topic not in channels:
            self._refuse(
                ConnectCode.NOT_AUTHORIZED, f"a will for {_show(packet.will.topic)}", actions
            )
            return
        self.device_id = device_id
        self._channels = channels
        self._command_topic = _own_topic(device_id, "commands")
        self._keep_alive = packet.keep_alive
        self._will = packet.will
        self._heard = now
        self._phase = _Phase.AUTHENTICATING
        actions.append(Authenticate(device_id, packet.password))

    def _take_publish(self, packet: Publish, at: datetime, actions: list[Action]) -> None:
        channel = self._channels.get(packet.topic)
        if channel is None:
            self._end(Cause.FORBIDDEN, f"a message for {_show(packet.topic)}", at, actions)
            return
        if packet.qos == 0:
            actions.append(Deliver(channel, packet.payload, 0, 0, False, at))
            return
        if packet.qos == 2:
            self._end(Cause.UNSUPPORTED, "QoS 2", at, actions)
            return
        packet_id = packet.packet_id
        fingerprint = hash(packet.payload)
        on_its_way = self._unacknowledged.get(packet_id)
        if on_its_way is not None:
            # A message sent again is answered by the PUBACK of the first; another one may not have
            # its packet id.
            if not packet.dup or on_its_way[1] != fingerprint:
                self._end(
                    Cause.VIOLATION, f"packet id {packet_id} is in use [MQTT-2.3.1-2]", at, actions
                )
            return
        received_at = at
        if packet.dup:
            received_at = self.receipts.first_received(packet_id, fingerprint) or at
        self._unacknowledged[packet_id] = (received_at, fingerprint)
        actions.append(Deliver(channel, packet.payload, packet_id, 1, packet.dup, received_at))

    def _take_subscribe(self, packet: Subscribe, actions: list[Action]) -> None:
        was_subscribed = self.is_subscribed
        own = (self._command_topic, self._command_topic + b"/#")
        codes = []
        for topic_filter, qos in packet.filters:
            if topic_filter in own:
                granted = min(qos, 1)
                self._subscriptions[topic_filter] = granted
                codes.append(granted)
            else:
                codes.append(SUBSCRIPTION_REFUSED)
        actions.append(Send(encode_suback(packet.packet_id, codes)))
        if self.is_subscribed and not was_subscribed:
            actions.append(Subscribed())

    def _take_unsubscribe(self, packet: Unsubscribe, actions: list[Action]) -> None:
        was_subscribed = self.is_subscribed
        for topic_filter in packet.filters:
            self._subscriptions.pop(topic_filter, None)
        actions.append(Send(encode_unsuback(packet.packet_id)))
        if was_subscribed and not self.is_subscribed:
            actions.append(Unsubscribed())

    def _refuse(self, code: ConnectCode, reason: str, actions: list[Action]) -> None:
        """Answer a CONNECT with a code other than 0, and close."""
        actions.append(Send(encode_connack(code)))
        actions.append(Close(Cause.REFUSED, reason))
        self._forget()

    def _end(self, cause: Cause, reason: str, at: datetime, actions: list[Action]) -> None:
        """Close; leave the device's will behind if it was accepted and took no leave."""
        if self._phase is _Phase.OPEN and self._will is not None:
            channel = self._channels[self._will.topic]
            actions.append(Deliver(channel, self._will.payload, 0, 0, False, at, is_will=True))
        actions.append(Close(cause, reason))
        self._forget()

    def _forget(self) -> None:
        """Be closed, and keep nothing but the receipts."""
        self._phase = _Phase.CLOSED
        self.receipts.remember_unacknowledged(self._unacknowledged)
        self._unacknowledged.clear()
        self._safe.clear()
        self._held.clear()
        self._subscriptions.clear()
        self._unanswered_commands.clear()
        self._will = None


def _read_device_id(text: str) -> UUID | None:
    """Return the id if `text` is a UUID in its one usual form, which the topics too have."""
    try:
        device_id = UUID(text)
    except ValueError:
        return None
    return device_id if str(device_id) == text else None


def _own_topic(device_id: UUID, level: str) -> bytes:
    return f"v1/devices/{device_id}/{level}".encode()


def _show(topic: bytes) -> str:
    """Return a topic for the log: quoted, and never long."""
    return repr(topic[:120].decode(errors="replace"))
