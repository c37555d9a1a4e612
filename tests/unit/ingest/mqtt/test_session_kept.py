"""QoS 2, and what a session is beyond its connection, story by story."""

from datetime import timedelta
from uuid import UUID, uuid4

from services.ingest.domain.channel import Channel
from services.ingest.protocols.mqtt.actions import (
    Action,
    Authenticate,
    Cause,
    Close,
    CommandAcknowledged,
    Deliver,
    Keep,
    Room,
    Send,
    Subscribed,
)
from services.ingest.protocols.mqtt.memory import Kept
from services.ingest.protocols.mqtt.packets import ReasonCode
from tests.unit.ingest.mqtt import device_packets as packets
from tests.unit.ingest.mqtt.device_packets import DEVICE, TOKEN, publish, subscribe, topic
from tests.unit.ingest.mqtt.test_session import NOON, Conversation, closing, connected


def pubrec(packet_id: int) -> bytes:
    return b"\x50\x02" + packet_id.to_bytes(2, "big")


def pubrel(packet_id: int) -> bytes:
    return b"\x62\x02" + packet_id.to_bytes(2, "big")


def pubcomp(packet_id: int) -> bytes:
    return b"\x70\x02" + packet_id.to_bytes(2, "big")


def exactly_once(packet_id: int, payload: bytes = b"{}", *, dup: bool = False) -> bytes:
    return publish(payload=payload, packet_id=packet_id, qos=2, dup=dup)


def delivery(packet_id: int, payload: bytes = b"{}") -> Deliver:
    return Deliver(Channel.TELEMETRY, payload, packet_id, 2, NOON)


def resumed(kept: Kept | None, **limits: float) -> tuple[Conversation, list[Action]]:
    """A device that comes back for its session, and what follows its CONNACK."""
    device = Conversation(**limits)
    assert device.says(packets.connect(clean=False)) == [
        Authenticate(UUID(DEVICE), TOKEN, resumes=True)
    ]
    told, *rest = device.session.accepted(device.seconds, kept=kept)
    assert told == Send(bytes([0x20, 2, kept is not None, 0]))
    return device, rest


def handed_over(device: Conversation) -> Kept:
    """What the next process reads of a session when its connection is lost."""
    device.session.connection_lost(device.at)
    return Kept.from_bytes(device.session.kept.to_bytes())


# QoS 2


def test_a_message_of_qos_2_is_received_when_it_is_safe_and_complete_when_released() -> None:
    device = connected()
    assert device.says(exactly_once(1)) == [delivery(1)]
    assert device.acknowledge(1) == pubrec(1)
    assert device.says(pubrel(1)) == [Send(pubcomp(1))]
    # The packet id is free again.
    assert device.says(exactly_once(1, b"2")) == [delivery(1, b"2")]


def test_a_message_of_qos_2_sent_again_is_not_taken_again() -> None:
    device = connected()
    device.says(exactly_once(1))
    assert device.says(exactly_once(1, dup=True)) == []
    assert device.acknowledge(1) == pubrec(1)
    assert device.says(exactly_once(1, dup=True)) == [Send(pubrec(1))]
    assert device.says(pubrel(1), pubrel(1)) == [Send(pubcomp(1))] * 2


def test_answers_to_both_qualities_leave_in_the_order_of_the_messages() -> None:
    device = connected()
    device.says(publish(packet_id=1), exactly_once(2), publish(packet_id=3))
    assert device.acknowledge(3, 2) == b""
    assert device.acknowledge(1) == packets.puback(1) + pubrec(2) + packets.puback(3)


def test_a_device_that_has_forgotten_what_it_sent_loses_no_message() -> None:
    device = connected()
    device.says(exactly_once(1))
    device.acknowledge(1)
    # Without DUP it is another message, though the first was never released.
    assert device.says(exactly_once(1, b"another")) == [delivery(1, b"another")]
    assert device.acknowledge(1) == pubrec(1)


def test_messages_never_released_are_bounded() -> None:
    device = connected(receive_window=3)
    for packet_id in range(1, 4):
        device.says(exactly_once(packet_id))
        assert device.acknowledge(packet_id) == pubrec(packet_id)
        assert device.is_read_from()
    device.says(exactly_once(4))
    device.acknowledge(4)
    assert "not released" in closing(Cause.VIOLATION, device.says(packets.PINGREQ)[1:])


# A session that goes on


def test_a_device_of_3_1_1_that_is_not_clean_is_remembered() -> None:
    assert connected().session.expiry_s == 0
    device, rest = resumed(None, session_expiry=600)
    assert rest == []
    assert device.session.is_persistent
    assert device.session.expiry_s == 600


def test_its_subscription_is_answered_when_it_is_safe_and_holds_for_the_next_connection() -> None:
    device, _ = resumed(None)
    assert device.says(subscribe(1, (topic("commands"), 1))) == [
        Keep(b"\x90\x03\x00\x01\x01"),
        Subscribed(),
    ]
    _, rest = resumed(handed_over(device))
    assert rest == [Subscribed()]


def test_what_was_received_and_not_released_is_known_to_the_next_connection() -> None:
    device, _ = resumed(None)
    device.says(exactly_once(1), exactly_once(2))
    device.acknowledge(1)
    device.wait(1)
    again, _ = resumed(handed_over(device))
    again.seconds = 60
    assert again.says(exactly_once(1, dup=True)) == [Send(pubrec(1))]
    # The second was not safe: it is taken again, and has the time it came first.
    assert again.says(exactly_once(2, dup=True)) == [
        Deliver(Channel.TELEMETRY, b"{}", 2, 2, NOON + timedelta(microseconds=1))
    ]
    assert again.says(pubrel(1)) == [Send(pubcomp(1))]


def test_a_command_not_answered_leaves_again_by_its_packet_id() -> None:
    device, _ = resumed(None)
    device.says(subscribe(1, (topic("commands"), 2)))
    ids = [uuid4() for _ in range(3)]
    for command_id in ids:
        assert device.session.publish_command(command_id, b"go", qos=2) is not None
    assert device.says(pubrec(1)) == [CommandAcknowledged(1), Send(pubrel(1))]
    assert device.says(pubrec(2), pubcomp(2)) == [CommandAcknowledged(2), Send(pubrel(2)), Room()]
    again, rest = resumed(handed_over(device))
    # The first was received: what remains is to release it. The second is done.
    assert rest == [Send(pubrel(1)), Subscribed()]
    command = again.session.publish_command(ids[2], b"go", qos=2)
    assert command is not None
    assert command.data == publish("commands", b"go", packet_id=3, qos=2, dup=True)
    fresh = again.session.publish_command(uuid4(), b"go", qos=2)
    assert fresh is not None
    assert fresh.packet_id == 4
    assert again.says(pubrec(3), pubcomp(3), pubcomp(1)) == [
        CommandAcknowledged(3),
        Send(pubrel(3)),
        Room(),
        Room(),
    ]


def test_a_command_that_is_over_takes_no_other_s_place_after_a_reconnect() -> None:
    """Nobody sends it a second time, so it is never answered; yet the device takes one at a time."""
    device, _ = resumed(None, send_window=1)
    device.says(subscribe(1, (topic("commands"), 1)))
    assert device.session.publish_command(uuid4(), b"over by then", qos=1) is not None
    again, _ = resumed(handed_over(device), send_window=1)
    command = again.session.publish_command(uuid4(), b"go", qos=1)
    assert command is not None
    assert again.says(packets.puback(command.packet_id)) == [CommandAcknowledged(command.packet_id)]
    for _ in range(3):
        assert again.session.publish_command(uuid4(), b"over by then", qos=1) is not None
        again, _ = resumed(handed_over(again), send_window=1)
    assert len(again.session.kept.sent) == 1, "nor are they remembered for ever"


def test_there_is_room_again_when_a_command_of_qos_2_is_done() -> None:
    device = connected(send_window=1)
    device.says(subscribe(1, (topic("commands"), 2)))
    assert device.session.publish_command(uuid4(), b"go", qos=2) is not None
    device.says(pubrec(1))
    assert device.session.publish_command(uuid4(), b"stop", qos=2) is None
    assert device.says(pubcomp(1)) == [Room()]
    assert device.session.publish_command(uuid4(), b"stop", qos=2) is not None


def test_a_command_sent_twice_on_one_connection_is_written_once() -> None:
    device = connected()
    device.says(subscribe(1, (topic("commands"), 1)))
    command_id = uuid4()
    first = device.session.publish_command(command_id, b"go", qos=1)
    second = device.session.publish_command(command_id, b"go", qos=1)
    assert first is not None
    assert second is not None
    assert (second.packet_id, second.data) == (first.packet_id, b"")


# Quota


def limited(keep_alive: int = 60, burst: int = 20) -> Conversation:
    return connected(keep_alive=keep_alive, messages_per_second=10, burst=burst, over_quota_s=60)


def flood(count: int) -> bytes:
    return publish() * count


def test_a_burst_is_taken_and_what_is_beyond_it_read_more_slowly() -> None:
    device = limited()
    assert len(device.says(flood(20))) == 20
    assert device.is_read_from()
    # What is in the segment is taken; what follows waits for as long as it is too much.
    assert len(device.says(flood(30))) == 30
    assert not device.is_read_from()
    assert device.deadline() is None
    assert device.wait(2.9) == []
    assert not device.is_read_from()
    device.wait(0.3)
    assert device.is_read_from()


def test_a_device_that_sends_too_much_for_a_minute_is_cut_off() -> None:
    device = limited()
    ended: list[Action] = []
    for _ in range(61):
        if device.is_read_from():
            device.says(flood(40))
        ended = device.wait(1)
        if ended:
            break
    assert closing(Cause.OVER_QUOTA, ended) == "more than 10 messages a second for 60 s"


def test_a_device_that_comes_to_its_senses_is_forgiven() -> None:
    device = limited(keep_alive=0)
    device.says(flood(40))
    for _ in range(120):
        assert device.wait(1) == []
    assert device.is_read_from()
    device.says(flood(40))
    assert device.wait(1) == []


def test_a_device_that_keeps_its_rate_after_a_burst_is_not_cut_off() -> None:
    device = limited(keep_alive=0, burst=200)
    device.says(flood(201))
    for _ in range(120):
        # Nearly all that it may, so that hardly anything is left over to make up for its burst.
        device.wait(1)
        if device.is_read_from():
            assert len(device.says(flood(9))) == 9
    assert device.is_read_from()


def test_a_device_over_its_quota_now_and_then_is_not_cut_off() -> None:
    device = limited(keep_alive=0, burst=200)
    for count in (600, 400, 400):
        device.says(flood(count))
        for _ in range(45):
            assert device.wait(1) == []
    device.says(flood(1_000))
    ended: list[Action] = []
    for _ in range(61):
        ended = ended or device.wait(1)
    assert closing(Cause.OVER_QUOTA, ended)


def test_a_large_message_counts_as_one_for_each_thousand_bytes() -> None:
    device = limited()
    topics = (b"telemetry", b"attributes")
    for packet_id, name in enumerate(topics, 1):
        # As twenty together, which is the burst.
        payload = b"x" * 9_001
        device.says(publish(name.decode(), payload=payload, packet_id=packet_id))
        assert device.is_read_from()
    device.says(publish(payload=b"x" * 1_000, packet_id=3))
    assert not device.is_read_from()


def test_an_ended_session_says_nothing_more() -> None:
    device = connected()
    device.says(exactly_once(1))
    assert [type(action) for action in device.session.close("revoked", device.at)] == [Close]
    assert device.acknowledge(1) == b""
    assert device.session.refused(ReasonCode.NOT_AUTHORIZED) == []
