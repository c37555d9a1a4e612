"""The session state of MQTT [MQTT-4.1]: what a device that was accepted says, and what it is told.

Pure, as the session that owns it: packets in, actions out.
"""

from datetime import datetime
from uuid import UUID

from services.ingest.domain.channel import Channel
from services.ingest.protocols.mqtt.actions import (
    Action,
    Cause,
    CommandAcknowledged,
    Deliver,
    Keep,
    Room,
    SaidAside,
    Send,
    Subscribed,
    Unsubscribed,
)
from services.ingest.protocols.mqtt.encoder import (
    PUBCOMP,
    PUBREL,
    SUBSCRIPTION_REFUSED,
    encode_acknowledgement,
    encode_publish,
    encode_suback,
    encode_unsuback,
)
from services.ingest.protocols.mqtt.inbound import Inbound
from services.ingest.protocols.mqtt.memory import Kept, unfinished_of
from services.ingest.protocols.mqtt.outbound import Command, Outbound
from services.ingest.protocols.mqtt.packets import (
    LEVEL_4,
    LEVEL_5,
    Packet,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Subscribe,
    Unsubscribe,
)
from services.ingest.protocols.mqtt.subscriptions import Subscriptions
from services.ingest.protocols.mqtt.terms import Terms
from services.ingest.protocols.mqtt.topics import Aside, Topics, show, state_of_host


class NotTaken(Exception):
    """What the device has said ends its connection, with this cause, reason and code."""

    def __init__(self, cause: Cause, reason: str, code: ReasonCode) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason
        self.code = code


class SessionState:
    """One device's subscriptions, and the messages either way that are not answered to the end."""

    __slots__ = ("_inbound", "_is_persistent", "_outbound", "_subscriptions", "_terms", "topics")

    def __init__(
        self, topics: Topics, terms: Terms, inbound: Inbound, *, is_persistent: bool
    ) -> None:
        self.topics = topics
        self._terms = terms
        self._inbound = inbound
        self._outbound = Outbound()
        self._subscriptions = Subscriptions(topics)
        self._is_persistent = is_persistent

    @property
    def is_subscribed(self) -> bool:
        """The device wants its commands."""
        return self._subscriptions.commands_qos is not None

    @property
    def kept(self) -> Kept:
        """What the device's next connection must know of this one."""
        return Kept(
            subscriptions=self._subscriptions.kept(),
            received=list(self._inbound.received),
            unfinished=unfinished_of(self._inbound.unacknowledged),
            sent=dict(self._outbound.sent),
            last_command_id=self._outbound.last_packet_id,
        )

    def resume(self, kept: Kept, most_commands: int, actions: list[Action]) -> None:
        """Go on where the device's last connection ended."""
        self._inbound.resume(kept)
        releases = self._outbound.resume(kept, most_commands)
        actions += [Send(release) for release in releases]
        self._subscriptions.resume(kept.subscriptions)
        if self.is_subscribed:
            actions.append(Subscribed())

    def take(self, packet: Packet, at: datetime, actions: list[Action]) -> None:
        """Take a packet, but such as begin or end a connection.

        Raises NotTaken or ProtocolViolation if the connection cannot go on.
        """
        match packet:
            case Publish():
                self._take_publish(packet, at, actions)
            case Puback(packet_id, code):
                if self._outbound.end(packet_id, 1):
                    actions.append(CommandAcknowledged(packet_id, code))
            case Pubrec(packet_id, code):
                self._take_pubrec(packet_id, code, actions)
            case Pubrel(packet_id):
                answer = self._found(self._inbound.release(packet_id))
                actions.append(Send(encode_acknowledgement(PUBCOMP, packet_id, answer)))
            case Pubcomp(packet_id):
                if self._outbound.complete(packet_id):
                    actions.append(Room())
            case Subscribe():
                self._take_subscribe(packet, at, actions)
            case Unsubscribe():
                self._take_unsubscribe(packet, actions)

    def listens_to(self, topic: bytes) -> bool:
        """The device wants what is told on the topic."""
        return self._subscriptions.qos_of(topic) is not None

    def publish(self, topic: bytes, payload: bytes) -> bytes:
        """Return what tells the device something on a topic, as `Session.publish`."""
        if not self.listens_to(topic):
            return b""
        data = encode_publish(topic, payload, level=self._terms.level)
        return data if self._terms.fits(data) else b""

    def publish_command(
        self,
        command_id: UUID,
        payload: bytes,
        *,
        qos: int,
        expires_in_s: int | None,
        topic: bytes | None,
    ) -> Command | None:
        """Return the command to send, as `Session.publish_command`."""
        if topic is None:
            topic, payload = self.topics.command(command_id, payload)
        granted = self._subscriptions.qos_of(topic)
        if granted is None:
            return None
        return self._outbound.publish(
            command_id,
            topic,
            payload,
            qos=min(qos, granted),
            terms=self._terms,
            properties=self._about(command_id, expires_in_s),
        )

    def _about(self, command_id: UUID, expires_in_s: int | None) -> Properties | None:
        """Return what a device of MQTT 5 may want to know of a command."""
        if self._terms.level == LEVEL_4:
            return None
        return Properties(
            payload_format=1,
            message_expiry=expires_in_s,
            content_type="application/json",
            response_topic=self.topics.replies_to(command_id),
            correlation_data=str(command_id).encode(),
        )

    def _take_publish(self, packet: Publish, at: datetime, actions: list[Action]) -> None:
        level, inbound = self._terms.level, self._inbound
        if packet.retain and level == LEVEL_5:
            raise NotTaken(
                Cause.UNSUPPORTED, "a message to be retained", ReasonCode.RETAIN_NOT_SUPPORTED
            )
        channel = self.topics.channel_of(packet.topic)
        aside = self.topics.aside_of(packet.topic) if channel is None else None
        is_forbidden = channel is None and aside is None
        if is_forbidden and (level == LEVEL_4 or packet.qos == 0):
            raise NotTaken(
                Cause.FORBIDDEN, f"a message for {show(packet.topic)}", ReasonCode.NOT_AUTHORIZED
            )
        if packet.qos == 0:
            actions.append(self._handed_over(packet, channel, aside, at))
            return
        answer = inbound.answer_again(packet)
        if answer is not None:
            if answer:
                actions.append(Send(answer))
            return
        received_at = inbound.open(packet, at)
        if is_forbidden:
            inbound.refuse(packet.packet_id, ReasonCode.NOT_AUTHORIZED)
            return
        actions.append(self._handed_over(packet, channel, aside, received_at))

    def _handed_over(
        self, packet: Publish, channel: Channel | None, aside: Aside | None, received_at: datetime
    ) -> Deliver | SaidAside:
        packet_id = packet.packet_id if packet.qos else 0
        if channel is None:
            assert aside is not None
            topic = packet.topic.decode()
            return SaidAside(aside, topic, packet.payload, packet_id, packet.qos, received_at)
        return Deliver(
            channel,
            self.topics.message(channel, packet.topic, packet.payload),
            packet_id,
            packet.qos,
            received_at,
            packet.properties,
        )

    def _take_pubrec(self, packet_id: int, code: int, actions: list[Action]) -> None:
        if code >= ReasonCode.UNSPECIFIED_ERROR:
            if self._outbound.end(packet_id, 2):
                actions.append(CommandAcknowledged(packet_id, code))
            return
        is_news = self._outbound.receive(packet_id)
        if is_news:
            actions.append(CommandAcknowledged(packet_id))
        answer = self._found(is_news is not None)
        actions.append(Send(encode_acknowledgement(PUBREL, packet_id, answer)))

    def _found(self, is_known: bool) -> ReasonCode:
        """Return what is said of a packet id; 3.1.1 has no word for an unknown one."""
        if is_known or self._terms.level == LEVEL_4:
            return ReasonCode.SUCCESS
        return ReasonCode.PACKET_IDENTIFIER_NOT_FOUND

    def _take_subscribe(self, packet: Subscribe, at: datetime, actions: list[Action]) -> None:
        if packet.properties is not None and packet.properties.subscription_id is not None:
            raise NotTaken(
                Cause.UNSUPPORTED,
                "a subscription identifier",
                ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED,
            )
        was_subscribed = self.is_subscribed
        level = self._terms.level
        codes = self._subscriptions.add(packet.filters, level)
        self._answer_kept(encode_suback(packet.packet_id, codes, level=level), actions)
        at_ms = int(at.timestamp() * 1000)
        for (topic_filter, _), code in zip(packet.filters, codes, strict=True):
            state = state_of_host(topic_filter, at_ms) if code < SUBSCRIPTION_REFUSED else None
            if state is not None:
                actions.append(Send(self.publish(*state)))
        if self.is_subscribed and not was_subscribed:
            actions.append(Subscribed())

    def _take_unsubscribe(self, packet: Unsubscribe, actions: list[Action]) -> None:
        was_subscribed = self.is_subscribed
        codes = self._subscriptions.remove(packet.filters)
        answer = encode_unsuback(packet.packet_id, codes, level=self._terms.level)
        self._answer_kept(answer, actions)
        if was_subscribed and not self.is_subscribed:
            actions.append(Unsubscribed())

    def _answer_kept(self, answer: bytes, actions: list[Action]) -> None:
        """Answer what changes the state: if that is to outlive its connection, once it is safe."""
        actions.append(Keep(answer) if self._is_persistent else Send(answer))
