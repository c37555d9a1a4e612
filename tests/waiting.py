"""Waiting for conditions, never for time."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, *, within_s: float = 30.0
) -> None:
    """Return as soon as the condition holds; fail, naming `what`, if it does not in time.

    The time is no promise of what is tested, unless a test gives one: a loaded machine is slow.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    pause_s = 0.005
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        if loop.time() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        await asyncio.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.5)
