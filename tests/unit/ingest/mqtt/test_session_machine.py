"""A device and an endpoint that do anything in any order, against a small model of the promises."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.ingest.protocols.mqtt.actions import (
    Action,
    Authenticate,
    Close,
    CommandAcknowledged,
    Deliver,
    Send,
    Subscribed,
    Unsubscribed,
)
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.packets import ReasonCode
from services.ingest.protocols.mqtt.session import Session
from tests.unit.ingest.mqtt.device_packets import (
    DISCONNECT,
    OTHER_DEVICE,
    PINGREQ,
    connect,
    puback,
    publish,
    subscribe,
    topic,
    unsubscribe,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = 4
few_packet_ids = st.integers(1, 6)
few_payloads = st.sampled_from([b"1", b"2"])


class DeviceAndEndpoint(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.session = Session(
            Limits(receive_window=WINDOW, send_window=2, remembered_receipts=3, held_bytes=400),
            now=0.0,
        )
        self.seconds = 0.0
        self.has_connected = False
        self.is_accepted = False
        self.is_closed = False
        self.has_will = False
        # Written by the device and not yet carried to the session.
        self.wire = b""
        # Whether the network carries everything at once.
        self.is_prompt = False
        # QoS 1 messages handed out and not answered, in order; what the endpoint called safe.
        self.open: list[int] = []
        self.safe: set[int] = set()
        # What the device knows of its packet ids: their payloads.
        self.unanswered: dict[int, bytes] = {}
        self.answered: dict[int, bytes] = {}
        self.sent_again: set[int] = set()
        self.first_received: dict[tuple[int, bytes], list[datetime]] = {}
        self.is_subscribed = False
        self.commands: set[int] = set()

    @property
    def at(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.is_closed, f"{action} after a Close"
            match action:
                case Authenticate():
                    assert not self.has_connected
                    self.has_connected = True
                case Deliver(delay_s=int()):
                    assert self.has_will
                    self.has_will = False
                case Deliver(_, payload, packet_id, 1, received_at):
                    assert self.is_accepted
                    assert packet_id not in self.open
                    self.open.append(packet_id)
                    times = self.first_received.setdefault((packet_id, payload), [])
                    # Those of one segment follow each other by a microsecond.
                    assert received_at < self.at + timedelta(milliseconds=1)
                    if received_at in times:
                        assert packet_id in self.sent_again or received_at >= self.at
                    times.append(received_at)
                case Deliver(packet_id=packet_id, qos=qos):
                    assert self.is_accepted
                    assert qos == packet_id == 0
                case Subscribed():
                    assert not self.is_subscribed
                    self.is_subscribed = True
                case Unsubscribed():
                    assert self.is_subscribed
                    self.is_subscribed = False
                case CommandAcknowledged(packet_id):
                    self.commands.remove(packet_id)
                case Send(data):
                    assert data
                case Close():
                    self.is_closed = True

    def writes(self, packet: bytes) -> None:
        self.wire += packet
        if self.is_prompt:
            self.carries_everything()

    @initialize(
        keep_alive=st.sampled_from([0, 10]),
        will=st.booleans(),
        is_prompt=st.sampled_from([True, True, True, False]),
    )
    def says_connect(self, keep_alive: int, will: bool, is_prompt: bool) -> None:
        self.is_prompt = is_prompt
        self.wire = connect(
            keep_alive=keep_alive, will=(topic("status"), b"gone") if will else None
        )
        self.has_will = will
        if is_prompt:
            self.carries_everything()
            self.accepts()

    @rule(packet_id=few_packet_ids, payload=few_payloads)
    def publishes(self, packet_id: int, payload: bytes) -> None:
        if packet_id not in self.unanswered:
            self.unanswered[packet_id] = payload
            if not self.wire:
                self.sent_again.discard(packet_id)
            self.writes(publish(packet_id=packet_id, payload=payload))

    @rule(packet_id=few_packet_ids)
    def publishes_again(self, packet_id: int) -> None:
        if packet_id in self.unanswered:
            payload = self.unanswered[packet_id]
            self.sent_again.add(packet_id)
            self.writes(publish(packet_id=packet_id, payload=payload, dup=True))

    @rule(packet_id=few_packet_ids)
    def has_missed_a_puback(self, packet_id: int) -> None:
        if packet_id in self.answered and packet_id not in self.unanswered:
            self.unanswered[packet_id] = self.answered[packet_id]
            self.publishes_again(packet_id)

    @rule(packet_id=few_packet_ids, payload=few_payloads)
    @precondition(lambda self: self.seconds > 3)
    def publishes_what_it_may_not(self, packet_id: int, payload: bytes) -> None:
        self.writes(publish(packet_id=packet_id, payload=payload))

    @rule()
    def publishes_without_asking_for_an_answer(self) -> None:
        self.writes(publish())

    @rule(qos=st.integers(0, 2))
    def subscribes(self, qos: int) -> None:
        self.writes(subscribe(1, (topic("commands"), qos), (b"#", 0)))

    @rule()
    def unsubscribes(self) -> None:
        self.writes(unsubscribe(2, topic("commands")))

    @rule(packet_id=st.integers(1, 4))
    def answers_a_command(self, packet_id: int) -> None:
        self.writes(puback(packet_id))

    @rule()
    def pings(self) -> None:
        self.writes(PINGREQ)

    @rule(
        packet=st.sampled_from(
            [
                DISCONNECT,
                connect(),
                publish(device=OTHER_DEVICE),
                b"\xf0\x00",
            ]
        )
    )
    @precondition(lambda self: self.seconds > 3)
    def says_its_last(self, packet: bytes) -> None:
        self.writes(packet)

    @rule(count=st.integers(1, 200))
    def carries_bytes(self, count: int) -> None:
        piece, self.wire = self.wire[:count], self.wire[count:]
        self.carry_out(self.session.receive(piece, self.at, self.seconds))

    @rule()
    def carries_everything(self) -> None:
        piece, self.wire = self.wire, b""
        self.carry_out(self.session.receive(piece, self.at, self.seconds))

    @rule()
    def accepts(self) -> None:
        self.is_accepted = self.has_connected and (self.is_accepted or not self.is_closed)
        self.carry_out(self.session.accepted(self.seconds))

    @rule()
    @precondition(lambda self: self.seconds > 3)
    def refuses(self) -> None:
        self.carry_out(self.session.refused(ReasonCode.BAD_USER_NAME_OR_PASSWORD))

    @rule(start=st.integers(0, 2), count=st.integers(1, 4), unknown=st.lists(few_packet_ids))
    def makes_safe(self, start: int, count: int, unknown: list[int]) -> None:
        packet_ids = self.open[start : start + count] + unknown
        self.safe |= set(packet_ids) & set(self.open)
        expected = b""
        while self.open and self.open[0] in self.safe and not self.is_closed:
            self.safe.discard(self.open[0])
            packet_id = self.open.pop(0)
            self.answered[packet_id] = self.unanswered.pop(packet_id, b"")
            expected += puback(packet_id)
        assert self.session.acknowledge(packet_ids, self.seconds) == expected

    @rule(qos=st.integers(0, 1))
    def sends_a_command(self, qos: int) -> None:
        command = self.session.publish_command(uuid4(), b"stop", qos=qos)
        if command is None:
            assert not self.is_subscribed or self.is_closed or len(self.commands) == 2
            return
        assert self.is_subscribed
        if command.packet_id:
            assert command.packet_id not in self.commands
            self.commands.add(command.packet_id)

    @rule()
    def pauses(self) -> None:
        self.session.pause()

    @rule()
    def resumes(self) -> None:
        self.session.resume(self.seconds)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def waits(self, seconds: float) -> None:
        self.seconds += seconds
        self.carry_out(self.session.tick(self.at, self.seconds))

    @rule()
    @precondition(lambda self: self.seconds > 5)
    def loses_the_connection(self) -> None:
        self.carry_out(self.session.connection_lost(self.at))
        assert self.is_closed

    @invariant()
    def is_consistent(self) -> None:
        session = self.session
        assert session.is_closed == self.is_closed
        if self.is_closed:
            assert session.deadline is None
            assert not session.is_reading
            assert not session.is_subscribed
            return
        assert session.is_subscribed == self.is_subscribed
        if len(self.open) >= WINDOW:
            assert not session.is_reading
        if session.deadline is not None:
            assert session.deadline > self.seconds

    def teardown(self) -> None:
        """However it went: the end comes once, and nothing after it."""
        was_accepted = self.is_accepted and not self.is_closed
        self.carry_out(self.session.connection_lost(self.at))
        assert self.is_closed
        assert not (was_accepted and self.has_will)
        assert self.session.connection_lost(self.at) == []
        assert self.session.close("revoked", self.at) == []
        assert self.session.receive(PINGREQ, self.at, self.seconds) == []
        assert self.session.accepted(self.seconds) == []
        assert self.session.refused(ReasonCode.BAD_USER_NAME_OR_PASSWORD) == []
        assert self.session.tick(self.at, self.seconds + 1e9) == []
        assert self.session.acknowledge(range(1, 10), self.seconds) == b""
        assert self.session.publish_command(uuid4(), b"stop", qos=1) is None


DeviceAndEndpoint.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None
)
test_a_device_and_an_endpoint_may_do_anything = DeviceAndEndpoint.TestCase
