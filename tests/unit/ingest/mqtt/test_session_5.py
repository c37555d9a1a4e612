"""What a device of MQTT 5 is told that one of 3.1.1 cannot be, story by story."""

from uuid import UUID, uuid4

import pytest

from libs.common.errors import TooLarge
from services.ingest.domain.channel import Channel
from services.ingest.protocols.mqtt.actions import (
    Action,
    Authenticate,
    Cause,
    Close,
    CommandAcknowledged,
    Deliver,
    Keep,
    Send,
    Subscribed,
)
from services.ingest.protocols.mqtt.body import encode_properties
from services.ingest.protocols.mqtt.packets import Properties, ReasonCode, Will
from tests.unit.ingest.mqtt.device_packets import (
    DEVICE,
    OTHER_DEVICE,
    PINGREQ,
    TOKEN,
    packet,
    puback,
    topic,
)
from tests.unit.ingest.mqtt.device_packets_5 import connect, properties, publish
from tests.unit.ingest.mqtt.test_session import NOON, Conversation

WELCOME = Properties(
    receive_maximum=1_000,
    maximum_packet_size=262_144,
    topic_alias_maximum=16,
    retain_available=0,
    subscription_ids_available=0,
    shared_available=0,
)


def connected(*, welcome: Properties = WELCOME, **options: object) -> Conversation:
    device = Conversation()
    assert device.says(connect(**options)) == [Authenticate(UUID(DEVICE), TOKEN)]  # type: ignore[arg-type]  # properties by their names
    body = b"\0\0" + encode_properties(welcome)
    assert device.accept() == [Send(packet(0x20, body))]
    return device


def dismissal(actions: list[Action]) -> tuple[int, Cause]:
    """The reason code of the DISCONNECT that a connection ends with, after whatever was before."""
    match actions:
        case [*_, Send(data), Close(cause)]:
            assert data[0] == 0xE0
            return data[2], cause
    raise AssertionError(actions)


def refusal(actions: list[Action]) -> int:
    match actions:
        case [Send(data), Close(Cause.REFUSED | Cause.VIOLATION)]:
            assert (data[0], data[2]) == (0x20, 0)
            return data[3]
    raise AssertionError(actions)


def subscribe(*filters: tuple[bytes, int], subscription_id: int | None = None) -> bytes:
    body = b"".join(len(name).to_bytes(2, "big") + name + bytes([qos]) for name, qos in filters)
    found = None if subscription_id is None else Properties(subscription_id=subscription_id)
    return packet(0x82, b"\x00\x01" + properties(found) + body)


def test_a_session_expiry_beyond_ours_is_shortened_and_said() -> None:
    assert connected(session_expiry=60).session.expiry_s == 60
    device = Conversation()
    device.says(connect(session_expiry=2**32 - 1))
    [told] = device.accept()
    assert isinstance(told, Send)
    assert b"\x11" + (7 * 86_400).to_bytes(4, "big") in told.data


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (connect(client_id=""), ReasonCode.CLIENT_IDENTIFIER_NOT_VALID),
        (connect(client_id=OTHER_DEVICE), ReasonCode.CLIENT_IDENTIFIER_NOT_VALID),
        (connect(password=None), ReasonCode.NOT_AUTHORIZED),
        (connect("press-7", "press-7"), ReasonCode.BAD_USER_NAME_OR_PASSWORD),
        (connect(authentication_method="SCRAM"), ReasonCode.BAD_AUTHENTICATION_METHOD),
        (connect(will=Will(b"elsewhere", b"")), ReasonCode.NOT_AUTHORIZED),
        (connect(will=Will(topic("status"), b"", 0, True)), ReasonCode.RETAIN_NOT_SUPPORTED),
        (connect(receive_maximum=0), ReasonCode.PROTOCOL_ERROR),
    ],
)
def test_a_device_that_may_not_in_learns_why(sent: bytes, code: ReasonCode) -> None:
    assert refusal(Conversation().says(sent)) == code


def test_a_message_for_a_foreign_topic_is_refused_in_its_turn_and_the_connection_goes_on() -> None:
    device = connected()
    device.says(publish(packet_id=1))
    assert device.says(publish(packet_id=2, device=OTHER_DEVICE)) == []
    assert device.acknowledge(1) == puback(1) + b"\x40\x03\x00\x02\x87"
    assert device.says(publish("commands", packet_id=3, qos=2)) == [Send(b"\x50\x03\x00\x03\x87")]
    assert device.says(PINGREQ) == [Send(b"\xd0\x00")]
    # Nobody would be told of one with QoS 0.
    code, cause = dismissal(device.says(publish(device=OTHER_DEVICE)))
    assert (code, cause) == (ReasonCode.NOT_AUTHORIZED, Cause.FORBIDDEN)


def test_what_a_device_says_of_its_payload_goes_with_it() -> None:
    device = connected()
    said = Properties(content_type="application/cbor", user=(("unit", "bar"),))
    sent = publish(packet_id=1, content_type=said.content_type, user=said.user)
    again = publish(packet_id=2, content_type=said.content_type, user=said.user)
    found = device.says(sent, again)
    assert [action.properties for action in found if isinstance(action, Deliver)] == [said, said]


def test_an_alias_stands_for_its_topic() -> None:
    device = connected()
    [first] = device.says(publish("alerts", b"1", packet_id=1, topic_alias=2))
    [second] = device.says(publish(payload=b"2", packet_id=2, name=b"", topic_alias=2))
    assert isinstance(first, Deliver)
    assert isinstance(second, Deliver)
    assert first.channel is second.channel is Channel.ALERTS


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (publish(retain=True), ReasonCode.RETAIN_NOT_SUPPORTED),
        (publish(topic_alias=17), ReasonCode.TOPIC_ALIAS_INVALID),
        (publish(payload=b"x" * 262_144), ReasonCode.PACKET_TOO_LARGE),
        (connect(), ReasonCode.PROTOCOL_ERROR),
        (b"\xf0\x00", ReasonCode.PROTOCOL_ERROR),
        (b"\x00\x00", ReasonCode.PROTOCOL_ERROR),
        (subscribe((topic("commands"), 1), subscription_id=5), 0xA1),
        (packet(0xE0, b"\x00\x05\x11\x00\x00\x00\x05"), ReasonCode.PROTOCOL_ERROR),
    ],
)
def test_a_device_that_breaks_a_rule_is_told_which(sent: bytes, code: int) -> None:
    found, cause = dismissal(connected().says(sent))
    assert found == code
    assert cause in (Cause.VIOLATION, Cause.UNSUPPORTED)


def test_more_messages_at_once_than_may_be_end_the_connection() -> None:
    device = connected()
    device.says(*(publish(packet_id=n) for n in range(1, 1_001)))
    assert device.is_read_from()
    code, _ = dismissal(device.says(publish(packet_id=1_001)))
    assert code == ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


def test_a_silent_device_and_one_that_is_cut_off_are_told_so() -> None:
    assert dismissal(connected(keep_alive=10).wait(15))[0] == ReasonCode.KEEP_ALIVE_TIMEOUT
    device = connected()
    taken_over = device.session.close("again", NOON, ReasonCode.SESSION_TAKEN_OVER)
    assert dismissal(taken_over)[0] == ReasonCode.SESSION_TAKEN_OVER


def test_a_device_that_reads_little_is_told_the_code_alone() -> None:
    device = connected(maximum_packet_size=10)
    *_, told, _ = device.says(publish(topic_alias=17))
    assert told == Send(bytes([0xE0, 1, ReasonCode.TOPIC_ALIAS_INVALID]))


def test_subscriptions_are_granted_or_refused_with_a_reason() -> None:
    device = connected()
    assert device.says(
        subscribe(
            (topic("commands"), 2), (topic("telemetry"), 0), (b"$share/a/" + topic("commands"), 0)
        )
    ) == [Send(b"\x90\x06\x00\x01\x00\x02\x87\x9e"), Subscribed()]
    body = b"\x00\x02\x00" + b"".join(
        len(name).to_bytes(2, "big") + name for name in (topic("commands"), b"x")
    )
    assert device.says(packet(0xA2, body))[0] == Send(b"\xb0\x05\x00\x02\x00\x00\x11")


def test_a_command_says_where_its_reply_goes_and_how_long_it_holds() -> None:
    device = connected(receive_maximum=1)
    device.says(subscribe((topic("commands"), 1)))
    command_id = uuid4()
    command = device.session.publish_command(command_id, b"{}", qos=2, expires_in_s=30)
    assert command is not None
    told = encode_properties(
        Properties(
            payload_format=1,
            message_expiry=30,
            content_type="application/json",
            response_topic=topic("replies"),
            correlation_data=str(command_id).encode(),
        )
    )
    assert command.data.endswith(topic("commands") + b"\x00\x01" + told + b"{}")
    # It takes one at a time.
    assert device.session.publish_command(uuid4(), b"{}", qos=1) is None
    assert device.says(b"\x40\x03\x00\x01\x83") == [CommandAcknowledged(1, 0x83)]
    assert device.session.publish_command(uuid4(), b"{}", qos=1) is not None


def test_a_command_larger_than_the_device_reads_is_not_sent() -> None:
    device = connected(maximum_packet_size=300)
    device.says(subscribe((topic("commands"), 1)))
    with pytest.raises(TooLarge, match="the device reads 300"):
        device.session.publish_command(uuid4(), b"x" * 300, qos=1)
    assert device.session.publish_command(uuid4(), b"x", qos=1) is not None


def test_a_will_may_wait_but_not_for_longer_than_the_session() -> None:
    def delay(session_expiry: int) -> int | None:
        will = Will(topic("alerts"), b"gone", properties=Properties(will_delay=60))
        device = Conversation()
        device.says(connect(will=will, session_expiry=session_expiry))
        device.accept()
        [last, _] = device.session.connection_lost(NOON)
        assert isinstance(last, Deliver)
        return last.delay_s

    assert [delay(0), delay(30), delay(90)] == [0, 30, 60]


def test_a_device_may_leave_with_its_will() -> None:
    will = Will(topic("status"), b"gone")
    [close] = connected(will=will).says(b"\xe0\x00")
    assert isinstance(close, Close)
    last, close = connected(will=will).says(b"\xe0\x01\x04")
    assert isinstance(last, Deliver)
    assert last.delay_s == 0


def test_a_device_may_give_its_session_up_as_it_leaves() -> None:
    device = connected(session_expiry=60)
    assert device.says(subscribe((topic("commands"), 1)))[0] == Keep(b"\x90\x04\x00\x01\x00\x01")
    device.says(packet(0xE0, b"\x00\x05\x11\x00\x00\x00\x00"))
    assert not device.session.is_persistent
