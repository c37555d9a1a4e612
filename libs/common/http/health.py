"""Is the process alive, and may it be sent work."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import log
from libs.common.errors import AppError
from libs.common.http.access import public

Check = Callable[[], Awaitable[object]]
"""Returns if the thing can be used now; raises otherwise."""

CHECK_TIMEOUT_S = 2.0

_log = log.logger(__name__)


class CheckResult(msgspec.Struct, frozen=True):
    """How one check went. `detail` names no address and no secret."""

    status: Literal["ok", "failing"]
    detail: str
    duration_ms: float


class Report(msgspec.Struct, frozen=True):
    """How all checks went; "ok" if every one did."""

    status: Literal["ok", "failing"]
    checks: dict[str, CheckResult]


class Health:
    """The checks of one service, asked in parallel, each given two seconds."""

    def __init__(self, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._checks: dict[str, Check] = {}
        self._abandoned: set[asyncio.Task[CheckResult]] = set()
        self._asking: asyncio.Task[Report] | None = None
        self._is_draining = False

    def add(self, name: str, check: Check) -> None:
        """Let readiness depend on this check too."""
        self._checks[name] = check

    def drain(self) -> None:
        """Be ready no more: the process ends when it has finished what has begun."""
        self._is_draining = True

    async def ready(self) -> Report:
        """Ask every check and return what they said; never raises, never takes much longer than 2 s.

        Whoever asks meanwhile gets the same answer: anybody may ask, and each check costs something.
        """
        if self._is_draining:
            return Report("failing", {"process": CheckResult("failing", "it is ending", 0.0)})
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="health.ready")
            self._asking.add_done_callback(self._answered)
        return await asyncio.shield(self._asking)

    def _answered(self, _task: asyncio.Task[Report]) -> None:
        self._asking = None

    async def _ask(self) -> Report:
        tasks = {
            name: asyncio.create_task(_run(name, check)) for name, check in self._checks.items()
        }
        if tasks:
            await asyncio.wait(tasks.values(), timeout=self._timeout_s)
        results: dict[str, CheckResult] = {}
        for name, task in tasks.items():
            if task.done():
                results[name] = task.result()
                continue
            # Not awaited: a check that hangs may hang in its own cancellation too.
            task.cancel()
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            _log.warning("check timed out", check=name, timeout_s=self._timeout_s)
            results[name] = CheckResult(
                "failing", f"no answer within {self._timeout_s:g} s", self._timeout_s * 1000
            )
        status: Literal["ok", "failing"] = (
            "ok" if all(r.status == "ok" for r in results.values()) else "failing"
        )
        return Report(status, results)

    @public("the orchestrator has no credential; it says no more than that the process runs")
    async def live(self, _request: Request) -> Response:
        """Answer 200 while the event loop runs."""
        return Response(b'{"status":"ok","checks":{}}', media_type="application/json")

    @public("the orchestrator has no credential; names of checks and whether they pass")
    async def readiness(self, _request: Request) -> Response:
        """Answer 200 if every check passes, 503 with the report otherwise."""
        report = await self.ready()
        return Response(
            msgspec.json.encode(report),
            status_code=200 if report.status == "ok" else 503,
            media_type="application/json",
        )


async def _run(name: str, check: Check) -> CheckResult:
    started = time.perf_counter()
    status: Literal["ok", "failing"] = "ok"
    detail = ""
    try:
        await check()
    except Exception as error:  # noqa: BLE001 - whatever a check raises means that it failed
        status = "failing"
        detail = error.detail if isinstance(error, AppError) else type(error).__name__
        _log.warning("check failed", check=name, cause=error)
    return CheckResult(status, detail, round((time.perf_counter() - started) * 1000, 1))
