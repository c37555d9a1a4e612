"""Ending tasks: surely, and within a time."""

import asyncio

import structlog

log = structlog.get_logger(__name__)

AGAIN_S = 1.0
MOST_TRIES = 10


def is_own_cancellation(error: BaseException) -> bool:
    """Whether the running task is told to end, and not something that it awaited was cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended; after 10 s say so in the log and go on without.

    Once is not always enough: a cancellation that meets a connection just closing can be taken for
    that closing, and the task would go on. What else it ends with is logged.
    """
    for _ in range(MOST_TRIES):
        if task.done():
            break
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_S)
    if not task.done():
        log.error("a task does not end", task=task.get_name(), stack=repr(task.get_stack(limit=1)))
    elif not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task ended badly", task=task.get_name(), error=repr(error))
