"""What processes cost: processor time and memory, of each with all that stands below it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import psutil

MEMORY_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor seconds, user and system together, since some beginning."""

    by_process: Mapping[str, float]
    machine_s: float
    """Of the whole machine, whoever spent them."""
    elapsed_s: float
    """On the monotonic clock, from some beginning."""

    def __sub__(self, before: "Spent") -> "Spent":
        by_process = {n: s - before.by_process.get(n, 0.0) for n, s in self.by_process.items()}
        return Spent(
            by_process, self.machine_s - before.machine_s, self.elapsed_s - before.elapsed_s
        )

    @property
    def total_s(self) -> float:
        """Of the named processes together."""
        return sum(self.by_process.values())


def spent(pids: Mapping[str, int]) -> Spent:
    """Return what the processes have spent, with their children, those that have ended included."""
    return Spent(
        {name: sum(map(_cpu_s, _family(pid))) for name, pid in pids.items()},
        _machine_s(),
        time.monotonic(),
    )


class PeakMemory:
    """Looks at the memory of processes every 2 s while the block lasts, and keeps the highest sums.

    RSS counts what processes share (PostgreSQL's buffers) once for each; PSS counts it once.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.rss_mb = 0.0
        self.pss_mb = 0.0

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            rss, pss = 0, 0
            for pid in self._pids().values():
                for process in _family(pid):
                    try:
                        memory = process.memory_full_info()
                    except psutil.Error:
                        continue
                    rss += memory.rss
                    pss += getattr(memory, "pss", memory.rss)
            self.rss_mb = max(self.rss_mb, rss / 1e6)
            self.pss_mb = max(self.pss_mb, pss / 1e6)
            if self._ended.wait(MEMORY_EVERY_S):
                return


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    # What an ended child has spent is its parent's `children_…` from then on.
    return times.user + times.system + times.children_user + times.children_system


def _machine_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in `user` as well
    return float(sum(times) - idle - guest)
