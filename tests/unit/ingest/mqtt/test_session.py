"""What a device may do on its connection and what becomes of it, story by story."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.ingest.domain.channel import Channel
from services.ingest.protocols.mqtt.actions import (
    Action,
    Authenticate,
    Cause,
    Close,
    CommandAcknowledged,
    Deliver,
    SaidAside,
    Send,
    Subscribed,
    Unsubscribed,
)
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.packets import ReasonCode
from services.ingest.protocols.mqtt.session import Session
from services.ingest.protocols.mqtt.topics import Aside
from tests.unit.ingest.mqtt import device_packets as packets
from tests.unit.ingest.mqtt.device_packets import (
    DEVICE,
    DISCONNECT,
    OTHER_DEVICE,
    PINGREQ,
    TOKEN,
    connect,
    puback,
    publish,
    subscribe,
    topic,
    unsubscribe,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACCEPTED = Send(b"\x20\x02\x00\x00")


class Conversation:
    """A session and its two clocks, as the endpoint would drive it."""

    def __init__(self, **limits: float) -> None:
        self.session = Session(Limits(**limits), now=0.0)  # type: ignore[arg-type]  # some are int
        self.seconds = 0.0

    @property
    def at(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def is_read_from(self) -> bool:
        return self.session.is_reading

    def deadline(self) -> float | None:
        return self.session.deadline

    def wait(self, seconds: float) -> list[Action]:
        self.seconds += seconds
        return self.session.tick(self.at, self.seconds)

    def says(self, *packets: bytes) -> list[Action]:
        return self.session.receive(b"".join(packets), self.at, self.seconds)

    def accept(self) -> list[Action]:
        return self.session.accepted(self.seconds)

    def acknowledge(self, *packet_ids: int) -> bytes:
        return self.session.acknowledge(packet_ids, self.seconds)


def connected(
    *, keep_alive: int = 60, will: tuple[bytes, bytes] | None = None, **limits: float
) -> Conversation:
    device = Conversation(**limits)
    device.says(connect(keep_alive=keep_alive, will=will))
    assert device.accept() == [ACCEPTED]
    return device


def refusal(code: int, actions: list[Action]) -> str:
    """The reason of a CONNECT answered by `code` and a close, and by nothing else."""
    match actions:
        case [Send(data), Close(Cause.REFUSED, reason)]:
            assert data == bytes([0x20, 2, 0, code])
            return reason
    raise AssertionError(actions)


def closing(cause: Cause, actions: list[Action]) -> str:
    match actions:
        case [Close(found, reason)]:
            assert found is cause
            return reason
    raise AssertionError(actions)


# Coming in


def test_a_device_with_its_token_comes_in() -> None:
    device = Conversation()
    assert device.says(connect()) == [Authenticate(UUID(DEVICE), TOKEN)]
    assert device.accept() == [ACCEPTED]
    assert device.session.device_id == UUID(DEVICE)


def test_a_wrong_token_is_answered_and_the_connection_closed() -> None:
    device = Conversation()
    device.says(connect())
    assert (
        refusal(4, device.session.refused(ReasonCode.BAD_USER_NAME_OR_PASSWORD))
        == "bad user name or password"
    )
    assert device.accept() == []
    assert device.session.is_closed


@pytest.mark.parametrize(
    ("packet", "code", "reason"),
    [
        (connect(client_id=""), 2, "an empty client id"),
        (connect(client_id="", clean=False), 2, "an empty client id"),
        (connect(username=None, password=None), 5, "no credentials"),
        (connect(password=None), 5, "no credentials"),
        (connect(username=OTHER_DEVICE), 2, "client id and user name differ"),
        (connect(client_id=OTHER_DEVICE), 2, "client id and user name differ"),
        (connect("press-7", "press-7"), 4, "the user name is no device id"),
        (connect("+", "+"), 4, "the user name is no device id"),
        (connect(DEVICE.upper(), DEVICE.upper()), 4, "the user name is no device id"),
        (connect("{" + DEVICE + "}", "{" + DEVICE + "}"), 4, "the user name is no device id"),
        (b"\x10\x0f\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x01dx", 1, "protocol 'MQTT' level 6"),
        (b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01d", 1, "protocol 'MQIsdp' level 3"),
    ],
)
def test_a_device_that_does_not_say_who_it_is_learns_why(
    packet: bytes, code: int, reason: str
) -> None:
    device = Conversation()
    assert refusal(code, device.says(packet)) == reason
    assert device.says(PINGREQ) == []


def test_something_else_than_mqtt_is_closed_without_a_word() -> None:
    assert closing(Cause.VIOLATION, Conversation().says(b"GET / HTTP/1.1\r\n\r\n"))


def test_a_connection_that_says_nothing_is_closed_in_time() -> None:
    device = Conversation(connect_timeout=10)
    assert device.deadline() == 10
    device.says(connect()[:5])
    assert device.wait(9.9) == []
    assert closing(Cause.SILENT, device.wait(0.1)) == "no CONNECT in time"


def test_an_authentication_without_an_outcome_says_that_the_server_is_unavailable() -> None:
    device = Conversation(connect_timeout=10)
    device.wait(9)
    device.says(connect())
    assert device.deadline() == 19
    assert device.wait(9.9) == []
    assert refusal(3, device.wait(0.1)) == "authentication took too long"


def test_what_a_device_sends_before_its_connack_is_taken_afterwards_in_order() -> None:
    device = Conversation()
    assert len(device.says(connect(), publish(packet_id=1, payload=b"one"), PINGREQ)) == 1
    assert not device.is_read_from()
    came = device.at
    device.wait(2)
    assert device.says(publish("status", b"two")) == []
    assert device.accept() == [
        ACCEPTED,
        Deliver(Channel.TELEMETRY, b"one", 1, 1, came),
        Send(b"\xd0\x00"),
        Deliver(Channel.STATUS, b"two", 0, 0, came + timedelta(seconds=2)),
    ]
    assert device.is_read_from()


def test_what_was_held_for_a_device_refused_is_forgotten() -> None:
    device = Conversation()
    device.says(connect(), publish(packet_id=1))
    assert len(device.session.refused(ReasonCode.BAD_USER_NAME_OR_PASSWORD)) == 2


def test_only_so_much_is_held() -> None:
    device = Conversation(held_bytes=100)
    device.says(connect(), publish(payload=b"x" * 500))
    assert device.says(publish(payload=b"")) == []
    assert closing(Cause.VIOLATION, device.says(publish(payload=b""))) == (
        "too much sent before the CONNACK"
    )
    assert device.accept() == []


def test_a_held_message_for_a_foreign_topic_closes_after_the_connack() -> None:
    device = Conversation()
    device.says(connect(), publish(device=OTHER_DEVICE), PINGREQ)
    match device.accept():
        case [Send(), Close(cause)]:
            assert cause is Cause.FORBIDDEN
        case other:
            raise AssertionError(other)


def test_a_second_connect_closes_the_connection() -> None:
    assert "MQTT-3.1.0-2" in closing(Cause.VIOLATION, connected().says(connect()))


# Publishing


@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize("packet_id", [0, 7])
def test_a_device_publishes_to_its_own_topics(channel: Channel, packet_id: int) -> None:
    device = connected()
    qos = 1 if packet_id else 0
    assert device.says(publish(channel, b"{}", packet_id=packet_id)) == [
        Deliver(channel, b"{}", packet_id, qos, NOON)
    ]


@pytest.mark.parametrize(
    ("level", "owner"),
    [
        ("telemetry", OTHER_DEVICE),
        ("telemetry", DEVICE.upper()),
        ("commands", DEVICE),
        ("telemetry/", DEVICE),
        ("telemetry/x", DEVICE),
        ("Telemetry", DEVICE),
        ("", DEVICE),
        ("$SYS", DEVICE),
    ],
)
@pytest.mark.parametrize("packet_id", [0, 7])
def test_a_publish_to_any_other_topic_closes_the_connection(
    level: str, owner: str, packet_id: int
) -> None:
    device = connected()
    reason = closing(
        Cause.FORBIDDEN, device.says(publish(level, device=owner, packet_id=packet_id))
    )
    assert reason == f"a message for 'v1/devices/{owner}/{level}'"
    assert device.says(publish()) == []


def test_what_came_before_a_foreign_topic_is_delivered_and_what_came_after_is_not() -> None:
    device = connected()
    actions = device.says(
        publish(packet_id=1), publish(packet_id=2, device=OTHER_DEVICE), publish(packet_id=3)
    )
    assert [type(action) for action in actions] == [Deliver, Close]


def test_what_came_before_a_violation_is_delivered() -> None:
    actions = connected().says(publish(packet_id=1), b"\xf0\x00")
    assert [type(action) for action in actions] == [Deliver, Close]


def test_a_message_too_large_closes_the_connection() -> None:
    device = connected(max_packet_size=200)
    assert "200 are allowed" in closing(Cause.VIOLATION, device.says(publish(payload=b"x" * 200)))


# Acknowledging


def test_nothing_is_acknowledged_before_it_is_safe() -> None:
    device = connected()
    actions = device.says(publish(packet_id=1), publish(packet_id=2))
    assert [type(action) for action in actions] == [Deliver, Deliver]
    assert device.acknowledge(1, 2) == puback(1) + puback(2)


def test_acknowledgements_leave_in_the_order_the_messages_came() -> None:
    device = connected()
    device.says(publish(packet_id=9), publish("alerts", packet_id=3), publish(packet_id=5))
    assert device.acknowledge(3) == b""
    assert device.acknowledge(9) == puback(9) + puback(3)
    assert device.acknowledge(5) == puback(5)


def test_a_message_is_acknowledged_once() -> None:
    device = connected()
    device.says(publish(packet_id=1), publish(packet_id=2))
    assert device.acknowledge(1, 1) == puback(1)
    assert device.acknowledge(1) == b""
    # Nor does what was said of a packet id before its message count.
    assert device.acknowledge(3) == b""
    device.says(publish(packet_id=3))
    assert device.acknowledge(2) == puback(2)
    assert device.acknowledge(3) == puback(3)


def test_a_packet_id_is_free_again_once_acknowledged() -> None:
    device = connected()
    for payload in (b"one", b"two"):
        (delivery,) = device.says(publish(packet_id=1, payload=payload))
        assert isinstance(delivery, Deliver)
        assert delivery.payload == payload
        # That the last one was safe says nothing about this one.
        assert device.acknowledge() == b""
        assert device.acknowledge(1) == puback(1)


@pytest.mark.parametrize(("dup", "payload"), [(False, b"one"), (True, b"two"), (False, b"two")])
def test_a_packet_id_in_use_is_not_to_be_used_for_another_message(
    dup: bool, payload: bytes
) -> None:
    device = connected()
    device.says(publish(packet_id=1, payload=b"one"))
    actions = device.says(publish(packet_id=1, payload=payload, dup=dup))
    assert closing(Cause.VIOLATION, actions) == "packet id 1 is in use [MQTT-2.3.1-2]"


def test_reading_pauses_while_too_much_is_not_yet_safe() -> None:
    device = connected(receive_window=4)
    device.says(*(publish(packet_id=number) for number in (1, 2, 3)))
    assert device.is_read_from()
    device.says(publish(packet_id=4))
    assert not device.is_read_from()
    device.acknowledge(1)
    assert not device.is_read_from()
    device.acknowledge(2)
    assert device.is_read_from()


def test_a_window_filled_before_the_connack_counts_too() -> None:
    device = Conversation(receive_window=2)
    device.says(connect(), publish(packet_id=1), publish(packet_id=2))
    device.accept()
    assert not device.is_read_from()


# Coming again


def test_a_message_sent_again_while_on_its_way_is_neither_delivered_nor_acknowledged_twice() -> (
    None
):
    device = connected()
    device.says(publish(packet_id=1))
    assert device.says(publish(packet_id=1, dup=True)) == []
    assert device.acknowledge(1) == puback(1)


def test_a_message_sent_again_after_its_puback_was_lost_keeps_its_time() -> None:
    device = connected()
    device.says(publish(packet_id=1))
    device.wait(1)
    device.acknowledge(1)
    device.wait(5)
    assert device.says(publish(packet_id=1, dup=True)) == [
        Deliver(Channel.TELEMETRY, b'{"temp":21.5}', 1, 1, NOON)
    ]
    assert device.acknowledge(1) == puback(1)
    device.wait(5)
    (again,) = device.says(publish(packet_id=1, dup=True))
    assert isinstance(again, Deliver)
    assert again.received_at == NOON


@pytest.mark.parametrize(
    ("dup", "payload"), [(False, b"one"), (True, b"two")], ids=["not marked", "another payload"]
)
def test_a_new_message_with_an_old_packet_id_has_its_own_time(dup: bool, payload: bytes) -> None:
    device = connected()
    device.says(publish(packet_id=1, payload=b"one"))
    device.acknowledge(1)
    device.wait(5)
    (delivery,) = device.says(publish(packet_id=1, payload=payload, dup=dup))
    assert isinstance(delivery, Deliver)
    assert delivery.received_at == device.at


def test_a_message_nobody_remembers_has_the_time_of_now() -> None:
    device = connected(remembered_receipts=2)
    for packet_id in (1, 2, 3):
        device.says(publish(packet_id=packet_id))
        device.acknowledge(packet_id)
    device.wait(5)
    times = {
        action.packet_id: action.received_at
        for action in device.says(*(publish(packet_id=number, dup=True) for number in (1, 2, 3)))
        if isinstance(action, Deliver)
    }
    assert times == {1: device.at, 2: NOON, 3: NOON}


def test_the_next_connection_of_a_device_knows_what_the_last_one_received() -> None:
    last = connected(remembered_receipts=2)
    last.says(*(publish(packet_id=number) for number in (1, 2, 3, 4)))
    last.acknowledge(1)
    last.session.connection_lost(NOON)
    device = Conversation()
    device.wait(5)
    device.says(connect(clean=False))
    device.session.accepted(device.seconds, receipts=last.session.receipts)
    actions = device.says(*(publish(packet_id=number, dup=True) for number in (2, 3, 4)))
    assert [action.received_at for action in actions if isinstance(action, Deliver)] == [
        NOON + timedelta(microseconds=number) for number in (1, 2, 3)
    ]
    assert device.acknowledge(2, 3, 4) == puback(2) + puback(3) + puback(4)


def test_receipts_do_not_grow_with_the_number_of_connections() -> None:
    receipts = None
    for connection in range(20):
        device = Conversation(remembered_receipts=8)
        device.says(connect())
        device.session.accepted(0.0, receipts=receipts)
        device.says(*(publish(packet_id=100 * connection + number) for number in range(1, 51)))
        device.session.connection_lost(NOON)
        receipts = device.session.receipts
    assert receipts is not None
    fingerprint = hash(b'{"temp":21.5}')
    known = [number for number in range(2_000) if receipts.first_received(number, fingerprint)]
    assert known == list(range(1_901, 1_951))


# Staying


def test_a_ping_is_answered() -> None:
    assert connected().says(PINGREQ, PINGREQ) == [Send(b"\xd0\x00"), Send(b"\xd0\x00")]


def test_a_device_silent_for_one_and_a_half_times_its_keep_alive_is_cut_off() -> None:
    device = connected(keep_alive=60)
    device.wait(60)
    device.says(PINGREQ)
    assert device.wait(89.9) == []
    assert closing(Cause.SILENT, device.wait(0.1)) == "nothing in 1.5 times 60 s"


def test_half_a_packet_is_no_sign_of_life() -> None:
    device = connected(keep_alive=60)
    device.wait(89)
    device.says(PINGREQ[:1])
    assert closing(Cause.SILENT, device.wait(1))


def test_without_a_keep_alive_a_device_may_be_silent_for_ever() -> None:
    device = connected(keep_alive=0)
    assert device.deadline() is None
    assert device.wait(1e9) == []


def test_silence_is_not_held_against_a_device_we_do_not_read_from() -> None:
    device = connected(keep_alive=10, receive_window=1)
    device.says(publish(packet_id=1))
    assert device.deadline() is None
    assert device.wait(100) == []
    device.acknowledge(1)
    assert device.deadline() == 115

    device.session.pause()
    assert device.wait(100) == []
    assert not device.is_read_from()
    device.session.resume(device.seconds)
    assert device.deadline() == 215
    assert device.wait(14.9) == []
    assert closing(Cause.SILENT, device.wait(0.1))


# Commands


def test_a_device_subscribes_to_its_commands_and_to_nothing_else() -> None:
    device = connected()
    actions = device.says(
        subscribe(
            7,
            (topic("commands"), 0),
            (topic("commands/#"), 2),
            (topic("commands", OTHER_DEVICE), 1),
            (topic("+"), 1),
            (topic("telemetry"), 1),
            (b"#", 0),
            (b"$share/a/" + topic("commands"), 1),
        )
    )
    assert actions == [Send(b"\x90\x09\x00\x07\x00\x02\x80\x80\x80\x80\x80"), Subscribed()]
    assert device.session.is_subscribed


def test_a_subscription_refused_is_none() -> None:
    device = connected()
    assert device.says(subscribe(7, (b"#", 1))) == [Send(b"\x90\x03\x00\x07\x80")]
    assert not device.session.is_subscribed
    assert device.session.publish_command(uuid4(), b"stop", qos=1) is None


def test_a_command_goes_out_and_its_answer_comes_back() -> None:
    device = connected()
    device.says(subscribe(1, (topic("commands"), 1)))
    first = device.session.publish_command(uuid4(), b"stop", qos=1)
    second = device.session.publish_command(uuid4(), b"go", qos=1)
    assert first is not None
    assert second is not None
    assert first.data == publish("commands", b"stop", packet_id=1)
    assert second.data == publish("commands", b"go", packet_id=2)
    assert device.says(puback(2), puback(9), puback(2), puback(1)) == [
        CommandAcknowledged(2),
        CommandAcknowledged(1),
    ]


def test_a_command_has_no_higher_qos_than_was_granted() -> None:
    device = connected()
    device.says(subscribe(1, (topic("commands"), 0)))
    command = device.session.publish_command(uuid4(), b"stop", qos=1)
    assert command is not None
    assert command.packet_id == 0
    assert command.data == publish("commands", b"stop")


def test_commands_wait_for_a_device_that_answers_none() -> None:
    device = connected(send_window=2)
    device.says(subscribe(1, (topic("commands"), 1)))
    assert device.session.publish_command(uuid4(), b"1", qos=1) is not None
    assert device.session.publish_command(uuid4(), b"2", qos=1) is not None
    assert device.session.publish_command(uuid4(), b"3", qos=1) is None
    device.says(puback(1))
    third = device.session.publish_command(uuid4(), b"3", qos=1)
    assert third is not None
    assert third.packet_id == 3


def test_a_packet_id_of_an_unanswered_command_is_not_used_again() -> None:
    device = connected()
    device.says(subscribe(1, (topic("commands"), 1)))
    device.session.publish_command(uuid4(), b"unanswered", qos=1)
    seen = set()
    for _ in range(65_534):
        command = device.session.publish_command(uuid4(), b"", qos=1)
        assert command is not None
        seen.add(command.packet_id)
        device.says(puback(command.packet_id))
    assert seen == set(range(2, 65_536))
    again = device.session.publish_command(uuid4(), b"", qos=1)
    assert again is not None
    assert again.packet_id == 2


def test_a_device_unsubscribes() -> None:
    device = connected()
    device.says(subscribe(1, (topic("commands"), 1), (topic("commands/#"), 1)))
    assert device.says(subscribe(2, (topic("commands"), 0))) == [Send(b"\x90\x03\x00\x02\x00")]
    assert device.says(unsubscribe(3, topic("commands"), b"#")) == [Send(b"\xb0\x02\x00\x03")]
    assert device.session.is_subscribed
    assert device.says(unsubscribe(4, topic("commands/#"))) == [
        Send(b"\xb0\x02\x00\x04"),
        Unsubscribed(),
    ]
    assert device.session.publish_command(uuid4(), b"stop", qos=0) is None


# Leaving


WILL = (topic("status"), b"gone")
LAST_WORD = Deliver(Channel.STATUS, b"gone", 0, 0, NOON, delay_s=0)


def test_a_device_that_takes_its_leave_leaves_no_will() -> None:
    device = connected(will=WILL)
    assert closing(Cause.DISCONNECTED, device.says(DISCONNECT, PINGREQ)) == "DISCONNECT"
    assert device.session.connection_lost(NOON) == []


def test_the_will_of_a_device_that_is_lost_is_delivered() -> None:
    assert connected(will=WILL).session.connection_lost(NOON) == [
        LAST_WORD,
        Close(Cause.LOST, "connection lost"),
    ]


@pytest.mark.parametrize("packet", [b"\xf0\x00", publish(device=OTHER_DEVICE)])
def test_the_will_of_a_device_that_is_closed_for_its_fault_is_delivered(packet: bytes) -> None:
    actions = connected(will=WILL).says(packet)
    assert actions[:-1] == [LAST_WORD]
    assert isinstance(actions[-1], Close)


def test_the_will_of_a_silent_or_revoked_device_is_delivered() -> None:
    device = connected(will=WILL, keep_alive=1)
    actions = device.wait(1.5)
    assert isinstance(actions[0], Deliver)
    assert actions[0].delay_s == 0
    assert connected(will=WILL).session.close("revoked", NOON) == [
        LAST_WORD,
        Close(Cause.ENDED, "revoked"),
    ]


@pytest.mark.parametrize(
    "name", [topic("status", OTHER_DEVICE), topic("commands"), b"$SYS/x", b"status"]
)
def test_a_will_on_a_foreign_topic_is_refused(name: bytes) -> None:
    reason = refusal(5, Conversation().says(connect(will=(name, b"gone"))))
    assert reason == f"a will for {name.decode()!r}"


def test_a_device_never_accepted_leaves_no_will() -> None:
    device = Conversation()
    device.says(connect(will=WILL))
    assert closing(Cause.LOST, device.session.connection_lost(NOON))
    assert device.accept() == []
    assert device.deadline() is None


# Sparkplug, and what is told beside commands


def test_a_connect_larger_than_anybody_needs_is_not_kept_until_it_is_whole() -> None:
    """Whoever it is may send one, and thousands at once."""
    device = Conversation()
    [end] = device.says(b"\x10" + b"\x81\x80\x01")  # 16,385 bytes, of which none is here
    assert isinstance(end, Close)
    assert end.cause is Cause.VIOLATION
    accepted = connected()
    payload = b" " * 100_000
    [taken] = accepted.says(publish(payload=payload, packet_id=1))
    assert isinstance(taken, Deliver)


def test_an_edge_node_s_words_are_handed_over_aside_and_acknowledged_as_others() -> None:
    device = connected()
    said = packets.packet(0x32, packets.field(b"spBv1.0/plant/NBIRTH/edge") + b"\0\7birth")
    assert device.says(said) == [
        SaidAside(Aside.EDGE_NODE, "spBv1.0/plant/NBIRTH/edge", b"birth", 7, 1, NOON)
    ]
    assert device.session.acknowledge([7], device.seconds) == puback(7)


def test_who_waits_for_its_host_is_told_at_once_that_it_is_there() -> None:
    device = connected()
    suback, state = device.says(subscribe(1, (b"spBv1.0/STATE/scada", 1)))
    assert suback == Send(b"\x90\x03\x00\x01\x01")
    assert isinstance(state, Send)
    assert b"spBv1.0/STATE/scada" in state.data
    assert b'"online":true' in state.data


@pytest.mark.parametrize(
    "topic_filter",
    [
        *[b"#", b"spBv1.0/#", b"spBv1.0/+/NDATA/#", b"spBv1.0/plant/DDATA/edge", b"+/STATE/x"],
        *[b"v1/gateway/rpc", b"v1/devices/+/attributes", b"spBv1.0/plant/NCMD/" + 1_024 * b"x"],
    ],
)
def test_what_is_said_to_others_nobody_may_hear(topic_filter: bytes) -> None:
    device = connected()
    assert device.says(subscribe(1, (topic_filter, 1))) == [Send(b"\x90\x03\x00\x01\x80")]


def test_a_device_has_so_many_subscriptions_and_no_more() -> None:
    device = connected()
    for number in range(1_100):
        device.says(subscribe(1, (b"spBv1.0/plant/DCMD/edge/%d" % number, 1)))
    assert device.says(subscribe(2, (b"spBv1.0/plant/DCMD/edge/more", 1))) == [
        Send(b"\x90\x03\x00\x02\x80")
    ]
    assert device.says(subscribe(3, (b"spBv1.0/plant/DCMD/edge/7", 0))) == [
        Send(b"\x90\x03\x00\x03\x00")
    ]


def test_a_device_has_few_subscriptions_with_a_wildcard() -> None:
    device = connected()
    for number in range(32):
        assert device.says(subscribe(1, (b"spBv1.0/plant/DCMD/edge-%d/#" % number, 1))) == [
            Send(b"\x90\x03\x00\x01\x01")
        ]
    wanted = topic("commands") + b"/#"
    assert device.says(subscribe(2, (wanted, 1))) == [Send(b"\x90\x03\x00\x02\x80")]
    assert not device.session.is_subscribed
    device.says(unsubscribe(3, b"spBv1.0/plant/DCMD/edge-7/#"))
    assert device.says(subscribe(4, (wanted, 1)))[1:] == [Subscribed()]


def test_of_two_subscriptions_to_its_commands_each_is_enough() -> None:
    device = connected()
    exactly, below = topic("commands"), topic("commands") + b"/#"
    assert device.says(subscribe(1, (exactly, 1), (below, 0)))[1:] == [Subscribed()]
    command = device.session.publish_command(uuid4(), b"go", qos=2)
    assert command is not None
    assert command.data == publish("commands", b"go", packet_id=1)
    assert Unsubscribed() not in device.says(unsubscribe(2, exactly))
    assert device.says(unsubscribe(3, below))[1:] == [Unsubscribed()]


def test_who_has_many_long_subscriptions_may_change_them_often() -> None:
    device = connected(max_packet_size=2_000_000, messages_per_second=1e9, burst=1e9)
    long = b"spBv1.0/plant/DCMD/" + b"/".join([b"x"] * 500)
    for number in range(1_060):
        device.says(subscribe(1, (long + b"/%d" % number, 1)))
    device.says(subscribe(1, *((b"spBv1.0/%d/DCMD/%s/+" % (n, long[19:]), 1) for n in range(32))))
    name = topic("commands")
    changes = [subscribe(1, (name, 1)), unsubscribe(1, name), unsubscribe(1, b"never")] * 300
    began = time.process_time()
    actions = device.says(*changes)
    assert [type(action) for action in actions] == [
        *[Send, Subscribed, Send, Unsubscribed, Send] * 300
    ]
    # Hundredths of a second; many seconds, were all that it has subscribed to looked at each time.
    assert time.process_time() - began < 1
