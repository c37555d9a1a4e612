"""Ending tasks."""

import asyncio

import pytest
import structlog

from libs.common import tasks
from libs.common.tasks import end


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


async def test_a_task_that_never_ends_is_named_and_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    may_end = asyncio.Event()

    async def hear_nothing() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(hear_nothing(), name="bus.deaf")
    await asyncio.sleep(0)
    try:
        with structlog.testing.capture_logs() as lines:
            await asyncio.wait_for(end(task), 5)
        assert not task.done()
    finally:
        # Nobody could end it, the test's own event loop least of all.
        may_end.set()
    await task
    assert [(line["event"], line["task"]) for line in lines] == [
        ("a task does not end", "bus.deaf")
    ]


async def test_what_a_task_ends_with_is_told() -> None:
    async def break_() -> None:
        raise RuntimeError("broken")

    task = asyncio.create_task(break_(), name="bus.broken")
    await asyncio.wait([task])
    with structlog.testing.capture_logs() as lines:
        await end(task)
    assert [line["error"] for line in lines] == ["RuntimeError('broken')"]
