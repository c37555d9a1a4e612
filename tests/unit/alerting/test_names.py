"""Looking up tenants' names, some of which are served by nobody."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import IPv4Address

import pytest

from libs.common.outbound import Address
from services.alerting.adapters.names import TenantNames
from tests.waiting import until

PUBLIC = IPv4Address("93.184.216.34")
THREADS, QUEUE = 3, 4


class NameServer:
    """Knows every name; is silent about those that end in `.silent.example` until it may speak."""

    def __init__(self) -> None:
        self.may_speak = threading.Event()
        self.asked: list[str] = []

    def look_up(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        if host.endswith(".silent.example"):
            self.may_speak.wait(30)
            raise OSError("no such name")
        return [PUBLIC]


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    server = NameServer()
    yield server
    server.may_speak.set()


@pytest.fixture
async def names(server: NameServer) -> AsyncIterator[TenantNames]:
    names = TenantNames(
        server.look_up, threads=THREADS, queue=QUEUE, within=timedelta(milliseconds=200)
    )
    yield names
    names.close()


async def fail(names: TenantNames, *hosts: str) -> None:
    answers = await asyncio.gather(
        *(names.resolve(host, 443) for host in hosts), return_exceptions=True
    )
    assert all(isinstance(answer, OSError) for answer in answers)


async def test_silent_names_keep_nobody_else_in_the_process_from_looking_up_theirs(
    names: TenantNames, server: NameServer
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    await fail(names, *(f"{n}.silent.example" for n in range(THREADS)))
    # As the database's, the bus's and the mail server's names are looked up: by the loop itself.
    assert await asyncio.wait_for(loop.getaddrinfo("127.0.0.1", 80), 5)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "a thread of the loop's"), 5)
    assert len(server.asked) == THREADS  # all of them still at work


async def test_one_silent_name_costs_one_thread_however_often_it_is_asked_for(
    names: TenantNames, server: NameServer
) -> None:
    for _ in range(2):
        await fail(names, *["one.silent.example"] * 20)
    assert server.asked == ["one.silent.example"]
    assert await names.resolve("hooks.example.com", 443) == [PUBLIC]


async def test_no_more_wait_than_the_queue_holds_and_all_is_well_when_the_server_speaks(
    names: TenantNames, server: NameServer
) -> None:
    await fail(names, *(f"{n}.silent.example" for n in range(THREADS + QUEUE)))
    with pytest.raises(OSError, match="too many names"):
        await names.resolve("hooks.example.com", 443)
    server.may_speak.set()
    await until(lambda: _answers(names), "names are looked up again")


async def _answers(names: TenantNames) -> bool:
    try:
        return await names.resolve("hooks.example.com", 443) == [PUBLIC]
    except OSError:
        return False
