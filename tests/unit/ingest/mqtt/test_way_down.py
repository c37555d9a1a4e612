"""Commands down a connection: how they wait for room, and when nobody waits."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.protocols.mqtt import way_down
from services.ingest.protocols.mqtt.actions import CommandAcknowledged
from services.ingest.protocols.mqtt.way_down import WayDown
from tests.unit.ingest.mqtt.device_packets import puback, subscribe, unsubscribe
from tests.unit.ingest.mqtt.test_session import Conversation, connected
from tests.waiting import until

BEHIND = b"spBv1.0/plant/DCMD/edge/press-7"


class Line:
    """A gateway that takes one command at once, and what it was sent."""

    def __init__(self, qos: int) -> None:
        self.device: Conversation = connected(send_window=1)
        self.sent: list[bytes] = []
        self.way_down = WayDown(self.device.session, SystemClock(), self.sent.append)
        self.device.says(subscribe(1, (BEHIND, qos)))

    def says(self, *packets: bytes) -> None:
        for action in self.device.says(*packets):
            if isinstance(action, CommandAcknowledged):
                self.way_down.answered(action.packet_id, action.code)

    async def order(self) -> Delivered:
        now = SystemClock().now()
        outgoing = Outgoing(uuid4(), "stop", {}, now, now + timedelta(minutes=1))
        return await self.way_down.transmit(outgoing, b"stop", BEHIND)


async def test_an_answer_makes_room_for_the_commands_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(way_down, "ROOM_S", 30)
    line = Line(qos=1)
    orders = [asyncio.create_task(line.order()) for _ in range(3)]
    async with asyncio.timeout(10):
        for packet_id in (1, 2, 3):
            await until(lambda: len(line.sent) == packet_id, "a command goes down")  # noqa: B023 - awaited here
            line.says(puback(packet_id))
        assert await asyncio.gather(*orders) == [Delivered.ACKNOWLEDGED] * 3


async def test_nobody_waits_for_a_device_that_does_not_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(way_down, "ROOM_S", 30)
    line = Line(qos=1)
    line.says(unsubscribe(2, BEHIND))
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await line.order()
    assert line.sent == []


async def test_who_waits_for_room_is_told_when_the_connection_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(way_down, "ROOM_S", 30)
    line = Line(qos=1)
    orders = [asyncio.create_task(line.order()) for _ in range(2)]
    await until(lambda: bool(line.sent), "the first goes down")
    line.device.session.connection_lost(line.device.at)
    line.way_down.close()
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*orders, return_exceptions=True)
    assert [type(each) for each in ended] == [Unavailable, Unavailable]
