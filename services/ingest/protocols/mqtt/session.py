"""One device's MQTT connection as a state machine: bytes and time in, actions out, no I/O.

The endpoint that owns the socket makes a `Session` when a connection is accepted and then

- carries out, in order, the actions returned by `receive` (bytes came), `accepted` or `refused`
  (what became of an `Authenticate`), `tick` (the `deadline` is past), `close` (we end it) and
  `connection_lost` (the peer is gone);
- calls `acknowledge` when messages handed out by `Deliver` are safe, and sends what it returns;
- after each of these reads from the socket only while `is_reading`;
- calls `publish_command` to send a command while `is_subscribed`, `publish` to tell something else;
- of a session that `is_persistent` writes `kept` down when it ends, and for each `Keep`.

After a `Close` no action follows, whatever is called. Two clocks go in: `at` is the time of day (an
aware UTC datetime, handed out again as `received_at`), `now` is in seconds and never runs
backwards (the event loop's `time()`), so that setting the machine's clock cuts nobody off.

A device may publish to its own topics and subscribe to what is said to itself (`topics`). MQTT 3.1.1 has
no way to refuse a single message, so one for any other topic ends the connection; MQTT 5 has, for
those of QoS 1 and 2, and the connection goes on.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import Enum
from uuid import UUID

from services.ingest.domain.channel import Channel
from services.ingest.domain.quota import MESSAGE_BYTES, Quota, messages_by_size
from services.ingest.protocols.mqtt.actions import (
    Action,
    Authenticate,
    Cause,
    Close,
    Deliver,
    SaidAside,
    Send,
)
from services.ingest.protocols.mqtt.decoder import Decoder
from services.ingest.protocols.mqtt.encoder import (
    PINGRESP,
    encode_connack,
    encode_disconnect,
)
from services.ingest.protocols.mqtt.inbound import Inbound
from services.ingest.protocols.mqtt.introduction import NotIntroduced, introduction_of
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.memory import Kept, Receipts
from services.ingest.protocols.mqtt.outbound import Command
from services.ingest.protocols.mqtt.pace import Pace
from services.ingest.protocols.mqtt.packets import (
    LEVEL_4,
    LEVEL_5,
    Auth,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Properties,
    ProtocolViolation,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Subscribe,
    Unsubscribe,
    UnsupportedConnect,
    Will,
)
from services.ingest.protocols.mqtt.state import NotTaken, SessionState
from services.ingest.protocols.mqtt.terms import UNKNOWN, terms_of, welcome
from services.ingest.protocols.mqtt.topics import Aside, Topics

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
        "_decoder",
        "_heard",
        "_held",
        "_held_bytes",
        "_inbound",
        "_is_paused",
        "_limits",
        "_pace",
        "_phase",
        "_state",
        "_telemetry_topic",
        "_terms",
        "_will",
        "device_id",
        "expiry_s",
        "has_certificate",
    )

    def __init__(self, limits: Limits, *, now: float) -> None:
        self.device_id: UUID | None = None
        """The device, from its CONNECT on if that names it; proven only once accepted."""
        self.has_certificate = False
        """Whether the device has shown a certificate, and may come in by it."""
        self.expiry_s = 0
        """For how long the session is to be kept once the connection is over."""
        self._limits = limits
        self._decoder = Decoder(
            limits.max_packet_size, limits.topic_aliases, limits.max_connect_size
        )
        self._phase = _Phase.CONNECTING
        self._heard = now
        self._terms = UNKNOWN
        self._will: Will | None = None
        # What came between a CONNECT and its outcome, and when.
        self._held: list[tuple[Packet, datetime]] = []
        self._held_bytes = 0
        self._is_paused = False
        # No topic is empty, so nothing takes the straight way before the device is accepted.
        self._telemetry_topic = b""
        self._inbound = Inbound(limits)
        self._state: SessionState  # from the CONNECT on
        self._pace = Pace(limits, now)

    @property
    def is_introduced(self) -> bool:
        """A CONNECT has come."""
        return self._phase is not _Phase.CONNECTING

    @property
    def is_closed(self) -> bool:
        """Nothing more will come of this session."""
        return self._phase is _Phase.CLOSED

    @property
    def is_reading(self) -> bool:
        """More bytes are welcome: not paused, the window not full, no CONNECT being looked at."""
        return not (
            self._is_paused or self._inbound.is_full or self._pace.is_slowed
        ) and self._phase in (_Phase.CONNECTING, _Phase.OPEN)

    @property
    def is_subscribed(self) -> bool:
        """The device wants its commands."""
        return self._phase is _Phase.OPEN and self._state.is_subscribed

    @property
    def is_slowed(self) -> bool:
        """The device has sent more than it may, and is not read from for a while."""
        return self._pace.is_slowed

    @property
    def is_persistent(self) -> bool:
        """The session is to outlive its connection."""
        return self.expiry_s > 0

    @property
    def topics(self) -> Topics:
        """The device's topics, from its CONNECT on."""
        return self._state.topics

    @property
    def receipts(self) -> Receipts:
        """For the device's next session."""
        return self._inbound.receipts

    @property
    def kept(self) -> Kept:
        """What the device's next connection must know of this one."""
        return self._state.kept

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, on the clock of `now`; None without a keep-alive or while not reading.

        It moves with everything received: set one timer, and on its firing look here again.
        """
        match self._phase:
            case _Phase.CONNECTING | _Phase.AUTHENTICATING:
                return self._heard + self._limits.connect_timeout
            case _Phase.OPEN if self._terms.keep_alive and self.is_reading:
                return self._heard + 1.5 * self._terms.keep_alive
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
        inbound = self._inbound
        unacknowledged = inbound.unacknowledged
        telemetry = Channel.TELEMETRY
        count = len(packets)
        for packet in packets:
            # The straight way for nearly every packet there is: as `SessionState.take`, without a call.
            if (
                packet.__class__ is Publish
                and packet.topic == telemetry_topic
                and packet.qos == 1
                and not (packet.dup or packet.retain)
                and (packet_id := packet.packet_id) not in unacknowledged
            ):
                payload = packet.payload
                if len(payload) > MESSAGE_BYTES:
                    count += messages_by_size(len(payload)) - 1
                unacknowledged[packet_id] = (at, hash(payload))
                append(Deliver(telemetry, payload, packet_id, 1, at, packet.properties))
                at += _NEXT
                continue
            self._take(packet, at, now, actions)
            if packet.__class__ is Publish:
                at += _NEXT
                count += messages_by_size(len(packet.payload)) - 1
            if self._phase is _Phase.CLOSED:
                return actions

        if violation is not None:
            self._end(Cause.VIOLATION, violation.reason, at, actions, violation.code)
            return actions
        if inbound.refused:
            self._answer_refused(now, actions)
        if len(unacknowledged) + len(inbound.received) >= self._limits.receive_window:
            try:
                inbound.look_at_window(self._terms.level)
            except ProtocolViolation as caught:
                self._end(Cause.VIOLATION, caught.reason, at, actions, caught.code)
        pace = self._pace
        pace.quota.left -= count
        if pace.quota.left < 0:
            pace.note_over(now)
        return actions

    def accepted(
        self,
        now: float,
        *,
        receipts: Receipts | None = None,
        kept: Kept | None = None,
        quota: Quota | None = None,
    ) -> list[Action]:
        """The token is right: welcome the device and take what it sent meanwhile.

        `receipts` are those of its last session in this process, `kept` is what was written down
        of a session that it resumes, `quota` is the device's, which others of its connections share;
        None: this connection's own. Nothing happens unless an Authenticate is open.
        """
        actions: list[Action] = []
        if self._phase is not _Phase.AUTHENTICATING:
            return actions
        self._phase = _Phase.OPEN
        self._heard = now
        # What came before, its CONNECT, is not counted.
        self._pace.quota = quota or Quota(self._pace.quota.rate, now)
        self._telemetry_topic = self.topics.telemetry
        if receipts is not None:
            self._inbound.receipts = receipts
        actions.append(
            Send(
                encode_connack(
                    ReasonCode.SUCCESS,
                    level=self._terms.level,
                    session_present=kept is not None,
                    properties=welcome(self._terms, self._limits, self.expiry_s),
                )
            )
        )
        if kept is not None:
            self._state.resume(kept, self._limits.send_window, actions)
        held, self._held = self._held, []
        for packet, received_at in held:
            self._take(packet, received_at, now, actions)
            if self.is_closed:
                return actions
        inbound = self._inbound
        if inbound.refused:
            self._answer_refused(now, actions)
        inbound.is_full = (
            self._terms.level == LEVEL_4
            and len(inbound.unacknowledged) >= self._limits.receive_window
        )
        return actions

    def refused(self, code: ReasonCode) -> list[Action]:
        """The device may not in. Nothing happens unless an Authenticate is open."""
        actions: list[Action] = []
        if self._phase is _Phase.AUTHENTICATING:
            self._refuse(code, code.name.lower().replace("_", " "), actions)
        return actions

    def acknowledge(self, packet_ids: Iterable[int], now: float) -> bytes:
        """Note that these messages are safe; return the PUBACKs and PUBRECs that may leave, maybe none.

        They leave in the order the messages came, so one may wait for another before it. Each
        leaves once; packet ids that are not open are passed over. Works on after a pause.
        """
        if self._phase is _Phase.CLOSED:
            return b""
        inbound = self._inbound
        was_full = inbound.is_full
        answers = inbound.acknowledge(packet_ids)
        if was_full and not inbound.is_full:
            self._heard = now
        return answers

    def _answer_refused(self, now: float, actions: list[Action]) -> None:
        """Answer messages that were refused, as far as those before them are answered."""
        answers = self.acknowledge((), now)
        if answers:
            actions.append(Send(answers))

    def listens_to(self, topic: bytes | None) -> bool:
        """Whether the device wants what is told on a topic; by None its own commands are meant."""
        if topic is None:
            return self.is_subscribed
        return self._phase is _Phase.OPEN and self._state.listens_to(topic)

    def publish(self, topic: bytes, payload: bytes) -> bytes:
        """Return what tells the device something on a topic, with QoS 0; nothing if it does not listen
        to that, or reads no packet so large.
        """
        return self._state.publish(topic, payload) if self._phase is _Phase.OPEN else b""

    def publish_command(
        self,
        command_id: UUID,
        payload: bytes,
        *,
        qos: int,
        expires_in_s: int | None = None,
        topic: bytes | None = None,
    ) -> Command | None:
        """Return the command to send, at no more than the QoS granted, by the device's own topic if
        none is named.

        None while the device is not subscribed, or has left as many commands unanswered as it or
        we allow: keep the command until a Subscribed or a CommandAcknowledged. Raises TooLarge if
        the device does not read so large a packet.
        """
        if self._phase is not _Phase.OPEN:
            return None
        return self._state.publish_command(
            command_id, payload, qos=qos, expires_in_s=expires_in_s, topic=topic
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
        """End the connection if its deadline is past, or if it has wanted too much for too long."""
        actions: list[Action] = []
        pace = self._pace
        was_slowed = pace.is_slowed
        is_over_too_long = pace.look(now)
        if was_slowed and not pace.is_slowed:
            self._heard = now
        if is_over_too_long:
            self._end(
                Cause.OVER_QUOTA,
                f"more than {self._limits.messages_per_second:g} messages a second"
                f" for {self._limits.over_quota_s:g} s",
                at,
                actions,
                ReasonCode.QUOTA_EXCEEDED,
            )
        deadline = self.deadline
        if deadline is None or now < deadline:
            return actions
        if self._phase is _Phase.AUTHENTICATING:
            self._refuse(ReasonCode.SERVER_UNAVAILABLE, "authentication took too long", actions)
        elif self._phase is _Phase.CONNECTING:
            self._end(Cause.SILENT, "no CONNECT in time", at, actions)
        else:
            self._end(
                Cause.SILENT,
                f"nothing in 1.5 times {self._terms.keep_alive} s",
                at,
                actions,
                ReasonCode.KEEP_ALIVE_TIMEOUT,
            )
        return actions

    def close(
        self, reason: str, at: datetime, code: ReasonCode = ReasonCode.ADMINISTRATIVE_ACTION
    ) -> list[Action]:
        """End the connection from our side: the device is revoked, or came by another one."""
        actions: list[Action] = []
        if not self.is_closed:
            self._end(Cause.ENDED, reason, at, actions, code)
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
        try:
            match packet:
                case (
                    Publish()
                    | Puback()
                    | Pubrec()
                    | Pubrel()
                    | Pubcomp()
                    | Subscribe()
                    | Unsubscribe()
                ):
                    self._state.take(packet, at, actions)
                case Connect():
                    self._take_connect(packet, now, actions)
                case UnsupportedConnect(name, level):
                    reason = f"protocol {name!r} level {level}"
                    self._refuse(ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, reason, actions)
                case Pingreq():
                    actions.append(Send(PINGRESP))
                case Disconnect():
                    self._take_disconnect(packet, at, actions)
                case Auth():
                    reason = "AUTH without an authentication method"
                    raise NotTaken(Cause.UNSUPPORTED, reason, ReasonCode.PROTOCOL_ERROR)
        except NotTaken as it:
            self._end(it.cause, it.reason, at, actions, it.code)
        except ProtocolViolation as violation:
            self._end(Cause.VIOLATION, violation.reason, at, actions, violation.code)

    def _take_connect(self, packet: Connect, now: float, actions: list[Action]) -> None:
        self._terms = terms_of(packet, self._limits)
        self.expiry_s = min(self._terms.asked_expiry, self._limits.session_expiry)
        try:
            introduced = introduction_of(packet, has_certificate=self.has_certificate)
        except NotIntroduced as wrong:
            self._refuse(wrong.code, wrong.reason, actions)
            return
        self.device_id = introduced.device_id
        self._state = SessionState(
            introduced.topics, self._terms, self._inbound, is_persistent=self.is_persistent
        )
        self._will = packet.will
        self._heard = now
        self._phase = _Phase.AUTHENTICATING
        actions.append(
            Authenticate(
                introduced.device_id,
                introduced.password,
                resumes=not packet.clean_session,
                by_certificate=introduced.by_certificate,
            )
        )

    def _take_disconnect(self, packet: Disconnect, at: datetime, actions: list[Action]) -> None:
        expiry = None if packet.properties is None else packet.properties.session_expiry
        if expiry is not None:
            if expiry and not self._terms.asked_expiry:
                reason = "a session that is to be kept after all"
                raise NotTaken(Cause.VIOLATION, reason, ReasonCode.PROTOCOL_ERROR)
            self.expiry_s = min(expiry, self._limits.session_expiry)
        if not packet.code:
            self._will = None
        self._end(Cause.DISCONNECTED, "DISCONNECT", at, actions)

    def _refuse(self, code: ReasonCode, reason: str, actions: list[Action]) -> None:
        """Answer a CONNECT with a code other than 0, and close."""
        actions.append(Send(self._refusal(code, reason)))
        actions.append(Close(Cause.REFUSED, reason))
        self._forget()

    def _refusal(self, code: ReasonCode, reason: str) -> bytes:
        level = self._decoder.level
        told = encode_connack(code, level=level, properties=Properties(reason_string=reason))
        return told if self._terms.fits(told) else encode_connack(code, level=level)

    def _end(
        self,
        cause: Cause,
        reason: str,
        at: datetime,
        actions: list[Action],
        code: ReasonCode = ReasonCode.UNSPECIFIED_ERROR,
    ) -> None:
        """Close; leave the device's will behind if it was accepted and took no leave."""
        if self._phase is _Phase.OPEN and self._will is not None:
            self._leave_will(self._will, at, actions)
        if self._decoder.level == LEVEL_5 and cause not in (Cause.LOST, Cause.DISCONNECTED):
            if self._phase is not _Phase.OPEN:
                actions.append(Send(self._refusal(code, reason)))
            else:
                told = encode_disconnect(code, reason)
                actions.append(Send(told if self._terms.fits(told) else encode_disconnect(code)))
        actions.append(Close(cause, reason))
        self._forget()

    def _leave_will(self, will: Will, at: datetime, actions: list[Action]) -> None:
        channel = self.topics.channel_of(will.topic)
        if channel is None:
            topic = will.topic.decode()
            actions.append(SaidAside(Aside.EDGE_NODE, topic, will.payload, 0, 0, at))
            return
        delay_s = 0
        if will.properties is not None:
            delay_s = min(will.properties.will_delay or 0, self.expiry_s)
        actions.append(Deliver(channel, will.payload, 0, 0, at, will.properties, delay_s))

    def _forget(self) -> None:
        """Be closed, and keep nothing but the receipts, and what a session that goes on consists of."""
        self._phase = _Phase.CLOSED
        self._inbound.end()
        self._held.clear()
        self._will = None
