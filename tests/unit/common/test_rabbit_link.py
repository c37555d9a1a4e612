"""Ending what keeps a connection to the broker."""

import asyncio

from libs.common.bus.rabbit_link import end


async def test_a_task_that_took_its_cancellation_for_something_else_ends_all_the_same() -> None:
    taken: list[str] = []
    has_begun = asyncio.Event()

    async def mistake_it_once() -> None:
        try:
            has_begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            taken.append("for a closing")
        await asyncio.Event().wait()

    task = asyncio.create_task(mistake_it_once())
    await has_begun.wait()
    await asyncio.wait_for(end(task), 5)
    assert task.cancelled()
    assert taken == ["for a closing"]
