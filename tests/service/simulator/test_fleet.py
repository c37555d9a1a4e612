"""How a fleet comes in: a few devices at once, and none measures before it is in."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from clients.simulator.protocols import Doors
from tests.fleet.fleet import ENTERING_AT_ONCE, Fleet, Member
from tests.waiting import until

DEVICES = 50


@dataclass
class Door:
    """A platform that answers nobody while it is shut."""

    url: str = ""
    knocked: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                self.knocked += 1
                await self.opened.wait()
                writer.write(b'HTTP/1.1 202 Accepted\r\ncontent-length: 14\r\n\r\n{"accepted":3}')
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass  # it leaves
        finally:
            writer.close()


@asynccontextmanager
async def shut_door() -> AsyncIterator[Door]:
    door = Door()
    server = await asyncio.start_server(door.attend, "127.0.0.1", 0)
    async with server:
        door.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield door


def fleet_before(door: Door) -> Fleet:
    members = [Member("http", uuid4(), "token") for _ in range(DEVICES)]
    return Fleet(Doors(door.url), members, pause_s=0.1, most_waiting=2)


async def test_devices_come_in_some_at_once_and_measure_when_they_are_in() -> None:
    async with shut_door() as door:
        fleet = fleet_before(door)
        async with fleet:
            await until(lambda: door.knocked == ENTERING_AT_ONCE, "those before the door knock")
            assert fleet.waiting == ENTERING_AT_ONCE, "one reading of each of them, none of others"
            assert fleet.entered == 0
            door.opened.set()
            await fleet.comes_in()
            assert (fleet.entered, fleet.never_in) == (DEVICES, {})
            await fleet.works(DEVICES * 3, within_s=15)


async def test_a_fleet_that_does_not_get_on_says_who_is_not_in() -> None:
    async with shut_door() as door:
        fleet = fleet_before(door)
        with pytest.raises(AssertionError, match=f"these never were: {{'http': {DEVICES}}}"):
            async with fleet:
                await fleet.comes_in(stalled_s=0.3)


async def told_afar(door: Door, told: dict[str, object]) -> asyncio.subprocess.Process:
    members = [("http", str(uuid4()), "token") for _ in range(3)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fleet.afar"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    told |= {"url": door.url, "doors": {}, "members": members, "most_waiting": 4}
    process.stdin.write(json.dumps(told).encode() + b"\n")
    return process


async def test_afar_it_works_until_so_much_is_acknowledged_and_tells_its_ledger() -> None:
    async with shut_door() as door:
        door.opened.set()
        process = await told_afar(door, {"points": 30})
        said, _ = await process.communicate()
    assert process.returncode == 0
    entries = [line for line in map(json.loads, said.splitlines()) if "device" in line]
    assert all(entry["sent"] == entry["acknowledged"] for entry in entries)
    assert sum(len(entry["sent"]) for entry in entries) >= 10


async def test_afar_time_counts_when_it_is_told_that_all_are_in() -> None:
    async with shut_door() as door:
        door.opened.set()
        process = await told_afar(door, {"pause_s": 3600.0, "stretches": [[0.0, 1.0], [0.5, 1e5]]})
        assert process.stdin is not None
        assert process.stdout is not None
        while json.loads(await process.stdout.readline())["entered"] < 3:
            pass
        assert door.knocked == 3, "the stretches would bring more"
        said, _ = await process.communicate(b"all are in\n")
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["settled"] for line in lines if "settled" in line][-1] is True
    assert door.knocked > 3
    assert sum(len(line["sent"]) for line in lines if "device" in line) == door.knocked
