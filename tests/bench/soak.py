"""Ten minutes under load, judged: nothing lost, everything read, and no process that grows.

It is the bench of ingest (see `python -m tests.bench.ingest --help`) for longer and at a lower rate, with a verdict:
it exits with 1 and says why when a promise is broken. The line has the verdict as `failures`.

A process grows when the memory that it has for itself does, measured between the second third of
the phase at full rate and the last: the first third is for pools and caches to fill. So a leak of
50 KB/s shows in ten minutes, and one of 8 KB/s in an hour.
"""

import sys
from collections.abc import Mapping

from tests.bench.ingest import Options, read_arguments, run
from tests.bench.report import Figure, print_report

SOAK = Options(seconds=600.0, rate=10_000.0)
MOST_GROWTH_MB = 10.0
"""From one third to the next: what an allocator takes at once when much is under way for a moment."""
ALSO_MB = {"rabbitmq": 64.0}
"""What a process may hold for a while besides: the broker's log, which it gives back when it is full."""

NONE_OF = {
    "lost": "points were acknowledged and are not stored",
    "duplicated": "points are stored twice",
    "never_sent": "points are stored that nobody sent",
    "quarantined": "points are in quarantine",
    "unacknowledged": "messages were not acknowledged",
    "connections_lost": "devices' connections were closed",
    "alerts_missing": "alerts were not raised",
    "ws_missing": "messages were not shown on the live connection",
    "queue_depth": "messages on the bus were not read",
    "dead_letters": "messages are dead letters",
}


def judge(figures: Mapping[str, Figure]) -> list[str]:
    """Return a sentence for each broken promise. Raises KeyError if a figure is missing."""
    failures = [
        f"{count} {what}" if count is not None else f"not measured, whether {what}"
        for name, what in NONE_OF.items()
        if (count := figures[name]) != 0
    ]
    if not figures["kept_up"]:
        failures.append(f"the platform fell behind: it had {figures['drain_s']} s left to store")
    growth = figures["memory_growth_mb_per_h"]
    if not isinstance(growth, Mapping):
        return [*failures, "too short to judge memory: let it run for three minutes at least"]
    thirds_per_h = 3 * 3600 / _number(figures["seconds"])
    for name, figure in growth.items():
        limit = (MOST_GROWTH_MB + ALSO_MB.get(name, 0.0)) * thirds_per_h
        if _number(figure) > limit:
            failures.append(f"{name} grows by {figure} MB an hour, of {limit:.0f} allowed")
    return failures


def _number(figure: Figure) -> float:
    assert isinstance(figure, int | float)
    return figure


def main() -> None:
    """Run the soak as a command."""
    options, as_json = read_arguments(
        prog="python -m tests.bench.soak", description=__doc__, defaults=SOAK
    )
    if not options.latency_seconds:
        raise SystemExit("a soak judges alerts and live values too: it needs --latency-seconds")
    figures = run(options)
    failures = judge(figures)
    print_report({**figures, "failures": failures}, mode=options.mode, as_json=as_json)
    for failure in failures:
        print(f"soak: {failure}", file=sys.stderr)
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
