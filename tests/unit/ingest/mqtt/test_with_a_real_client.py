"""The bytes of a client in wide use (Eclipse Paho) meet the session, over a pair of sockets."""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from services.ingest.domain.channel import Channel
from services.ingest.protocols.mqtt.actions import (
    Action,
    Authenticate,
    Cause,
    Close,
    CommandAcknowledged,
    Deliver,
    Send,
    Subscribed,
    Unsubscribed,
)
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.packets import ReasonCode as OurCode
from services.ingest.protocols.mqtt.session import Session
from tests.unit.ingest.mqtt.device_packets import DEVICE, TOKEN, topic

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class PahoOverAPair(Client):
    """A Paho client that gets one end of a pair of sockets instead of a connection."""

    def __init__(self, end: socket.socket, version: MQTTProtocolVersion, client_id: str) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version)
        self.end = end

    def _create_socket(self) -> socket.socket:
        return self.end


class Line:
    """A Paho client and a session, and all that passed between them."""

    def __init__(
        self,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
        password: str | None = TOKEN.decode(),
        client_id: str = DEVICE,
    ) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.client = PahoOverAPair(self.theirs, version, client_id)
        if password is not None:
            self.client.username_pw_set(DEVICE, password)
        self.client.will_set(topic("status").decode(), "gone", qos=1)
        self.session = Session(Limits(), now=0.0)
        self.actions: list[Action] = []
        self.connect_codes: list[int] = []
        self.commands: list[bytes] = []
        self.granted: list[list[int]] = []
        self.client.on_connect = self._note_connect
        self.client.on_message = self._note_message
        self.client.on_subscribe = self._note_subscribe

    def _note_connect(
        self,
        _client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self.connect_codes.append(code.value)

    def _note_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        self.commands.append(bytes(message.payload))

    def _note_subscribe(
        self,
        _client: Client,
        _userdata: object,
        _mid: int,
        codes: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self.granted.append([code.value for code in codes])

    def pass_on(self) -> list[Action]:
        """Carry what the client wrote; return what the session wants done, answers apart."""
        new: list[Action] = []
        with suppress(BlockingIOError):
            while data := self.ours.recv(65_536):
                new += self.carry_out(self.session.receive(data, NOON, 0.0))
        return new

    def carry_out(self, actions: list[Action]) -> list[Action]:
        """Send what is to be sent; return the rest."""
        self.send(b"".join(action.data for action in actions if isinstance(action, Send)))
        return [action for action in actions if not isinstance(action, Send)]

    def send(self, data: bytes) -> None:
        """Write to the client and let it read."""
        if not data:
            return
        self.ours.sendall(data)
        with suppress(BlockingIOError):
            # Paho reads one packet at a time.
            while self.client.socket() is not None and self.theirs.recv(1, socket.MSG_PEEK):
                self.client.loop_read()

    def come_in(self) -> None:
        self.client.connect("nowhere")
        assert [type(action) for action in self.pass_on()] == [Authenticate]
        self.carry_out(self.session.accepted(0.0))
        assert self.connect_codes == [0]

    def reconnect(self) -> None:
        """The line broke: the client gets another end, we another session."""
        self.close()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.client.end = self.theirs
        self.session = Session(Limits(), now=0.0)
        self.client.reconnect()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def new_line() -> Iterator[Callable[..., Line]]:
    lines: list[Line] = []

    def make(**arguments: str | MQTTProtocolVersion | None) -> Line:
        lines.append(Line(**arguments))  # type: ignore[arg-type]  # each by its own name
        return lines[-1]

    yield make
    for line in lines:
        line.close()


def test_a_client_comes_in_publishes_and_is_acknowledged(new_line: Callable[..., Line]) -> None:
    line = new_line()
    line.come_in()
    telemetry = topic("telemetry").decode()
    messages = [line.client.publish(telemetry, f'{{"temp":{n}}}', qos=1) for n in range(15)]
    last = line.client.publish(topic("alerts").decode(), b"", qos=0)
    actions = line.pass_on()
    assert actions == [
        *(
            Deliver(Channel.TELEMETRY, b'{"temp":%d}' % n, message.mid, 1, NOON + n * MICROSECOND)
            for n, message in enumerate(messages)
        ),
        Deliver(Channel.ALERTS, b"", 0, 0, NOON + 15 * MICROSECOND),
    ]
    assert last.is_published()
    assert not any(message.is_published() for message in messages)
    line.send(line.session.acknowledge([message.mid for message in messages], 0.0))
    assert all(message.is_published() for message in messages)


def test_a_client_receives_its_commands(new_line: Callable[..., Line]) -> None:
    line = new_line()
    line.come_in()
    line.client.subscribe([(topic("commands").decode(), 2), ("#", 0)])
    assert line.pass_on() == [Subscribed()]
    assert line.granted == [[2, 0x80]]
    command = line.session.publish_command(uuid4(), b"stop", qos=1)
    assert command is not None
    line.send(command.data)
    assert line.commands == [b"stop"]
    assert line.pass_on() == [CommandAcknowledged(command.packet_id)]
    line.client.unsubscribe(topic("commands").decode())
    assert line.pass_on() == [Unsubscribed()]


def test_a_client_that_disconnects_leaves_no_will(new_line: Callable[..., Line]) -> None:
    line = new_line()
    line.come_in()
    line.client.disconnect()
    assert line.pass_on() == [Close(Cause.DISCONNECTED, "DISCONNECT")]


def test_a_client_that_is_gone_leaves_its_will(new_line: Callable[..., Line]) -> None:
    line = new_line()
    line.come_in()
    assert line.session.connection_lost(NOON) == [
        Deliver(Channel.STATUS, b"gone", 0, 0, NOON, delay_s=0),
        Close(Cause.LOST, "connection lost"),
    ]


def test_a_client_sends_again_what_was_not_acknowledged_and_it_keeps_its_time(
    new_line: Callable[..., Line],
) -> None:
    line = new_line()
    line.come_in()
    message = line.client.publish(topic("telemetry").decode(), b"21.5", qos=1)
    line.pass_on()
    line.session.connection_lost(NOON)
    receipts = line.session.receipts

    # Paho takes its next end of a pair and says CONNECT, then what is unanswered, with DUP.
    line.reconnect()
    (authenticate,) = line.pass_on()
    assert isinstance(authenticate, Authenticate)
    line.carry_out(line.session.accepted(0.0, receipts=receipts))
    later = NOON + timedelta(minutes=1)
    assert line.session.receive(line.ours.recv(65_536), later, 60.0) == [
        Deliver(Channel.TELEMETRY, b"21.5", message.mid, 1, NOON)
    ]
    line.send(line.session.acknowledge([message.mid], 60.0))
    assert message.is_published()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        # Paho's VERSION2 callbacks translate the codes of 3.1.1 to those of MQTT 5.
        ({"version": MQTTProtocolVersion.MQTTv31}, 0x84),
        ({"client_id": "press-7"}, 0x85),
        ({"password": None}, 0x87),
    ],
)
def test_a_client_that_may_not_in_learns_why(
    new_line: Callable[..., Line], arguments: dict[str, str | None], code: int
) -> None:
    line = new_line(**arguments)
    line.client.connect("nowhere")
    (close,) = line.pass_on()
    assert isinstance(close, Close)
    assert close.cause is Cause.REFUSED
    assert line.connect_codes == [code]


def test_a_client_with_a_wrong_token_learns_it(new_line: Callable[..., Line]) -> None:
    line = new_line()
    line.client.connect("nowhere")
    line.pass_on()
    line.carry_out(line.session.refused(OurCode.BAD_USER_NAME_OR_PASSWORD))
    assert line.connect_codes == [0x86]
