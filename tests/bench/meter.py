"""What processes cost: processor time and memory, of each with all that stands below it."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import psutil

MEMORY_EVERY_S = 2.0
FEWEST_SAMPLES = 60
"""Two minutes: a floor is seen by many looks."""


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


@dataclass(frozen=True, slots=True)
class Memory:
    """What processes held at a moment."""

    at: float
    """On the monotonic clock."""
    own_mb: Mapping[str, float]
    """By name: what a process and those below it have for themselves, shared pages left out."""


class MemoryWatch:
    """Looks at the memory of processes every 2 s while the block lasts.

    `samples` is what each had for itself, which is where a leak shows. The peaks are of all together:
    RSS counts what processes share (PostgreSQL's buffers) once for each, PSS counts it once.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.samples: list[Memory] = []
        self.peak_rss_mb = 0.0
        self.peak_pss_mb = 0.0

    def __enter__(self) -> "MemoryWatch":
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

    def between(self, start: float, end: float) -> list[Memory]:
        """Return the samples of a stretch of time (monotonic clock)."""
        return [sample for sample in list(self.samples) if start <= sample.at <= end]

    def _watch(self) -> None:
        while True:
            self._look()
            if self._ended.wait(MEMORY_EVERY_S):
                return

    def _look(self) -> None:
        rss, pss = 0, 0
        own: dict[str, int] = {}
        for name, pid in self._pids().items():
            for process in _family(pid):
                try:
                    memory = process.memory_full_info()
                except psutil.Error:
                    continue
                rss += memory.rss
                pss += getattr(memory, "pss", memory.rss)
                own[name] = own.get(name, 0) + memory.rss - getattr(memory, "shared", 0)
        self.peak_rss_mb = max(self.peak_rss_mb, rss / 1e6)
        self.peak_pss_mb = max(self.peak_pss_mb, pss / 1e6)
        self.samples.append(Memory(time.monotonic(), {n: size / 1e6 for n, size in own.items()}))


def growth_mb_per_h(samples: Sequence[Memory]) -> dict[str, float] | None:
    """Return how fast each process grew; None if the samples span too little to say.

    The first third is left out: pools and caches fill then. Compared are the lowest sample of the
    second third and that of the last: much of what a process takes it gives back (a broker's log, a
    garbage collector's heap), and only what it keeps raises the floor.
    """
    if len(samples) < FEWEST_SAMPLES:
        return None
    third = len(samples) // 3
    before, after = samples[third : 2 * third], samples[-third:]
    hours = (after[0].at - before[0].at) / 3600
    names = {name for sample in samples for name in sample.own_mb}
    return {
        name: round((_floor_mb(after, name) - _floor_mb(before, name)) / hours, 1)
        for name in sorted(names)
    }


def _floor_mb(samples: Sequence[Memory], name: str) -> float:
    return min(sample.own_mb.get(name, 0.0) for sample in samples)


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
