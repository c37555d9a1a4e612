"""A ticker outlives whatever its job does."""

import asyncio
from datetime import timedelta

from libs.common.jobs import Ticker
from tests.waiting import until


async def test_neither_an_error_nor_a_cancelled_part_of_its_job_stops_a_ticker() -> None:
    runs = 0

    async def job() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("a fault")
        if runs == 2:
            raise asyncio.CancelledError  # as from a task that somebody cancelled

    ticker = Ticker("test", timedelta(milliseconds=5), job)
    ticker.start()
    await until(lambda: runs >= 4, "four runs", within_s=5)
    await ticker.stop()


async def test_stopping_waits_for_the_run_under_way_and_no_longer_than_asked() -> None:
    began, ended = asyncio.Event(), False

    async def job() -> None:
        nonlocal ended
        began.set()
        await asyncio.sleep(0.05)
        ended = True

    ticker = Ticker("test", timedelta(seconds=60), job)
    ticker.start()
    await began.wait()
    await ticker.stop()
    assert ended

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    began.clear()
    ticker = Ticker("test", timedelta(seconds=60), hang)
    ticker.start()
    await began.wait()
    async with asyncio.timeout(30):
        await ticker.stop(within=timedelta(milliseconds=20))


async def test_a_ticker_woken_during_a_run_runs_once_more() -> None:
    runs = 0
    gate = asyncio.Event()

    async def job() -> None:
        nonlocal runs
        runs += 1
        await gate.wait()

    ticker = Ticker("test", timedelta(seconds=60), job)
    ticker.start()
    await until(lambda: runs == 1, "the first run")
    ticker.wake()
    ticker.wake()
    gate.set()
    await until(lambda: runs == 2, "the second run")
    await ticker.stop()
    assert runs == 2
