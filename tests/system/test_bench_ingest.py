"""The bench of ingest, small and short: it runs, ends by itself, and its line holds what is promised."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = {
    "points_per_s", "cpu_s_per_million_points", "ack_p50_ms", "ack_p99_ms", "stored_p50_ms",
    "stored_p99_ms", "alert_p99_ms", "ws_p99_ms", "lost", "duplicated", "peak_rss_mb",
    "generator_cpu_s_per_million_points", "cpu_by_process", "machine", "commit", "mode", "seconds",
    "rate",
}  # fmt: skip


@pytest.fixture(scope="module")
def line() -> dict[str, object]:
    words = "--json --seconds 2 --latency-seconds 2 --rate 2000 --connections 50 --rules 5"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ingest", *words.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return figures


def test_the_line_holds_every_figure(line: dict[str, object]) -> None:
    assert line.keys() >= FIGURES


def test_every_acknowledged_point_is_stored_once(line: dict[str, object]) -> None:
    assert (line["lost"], line["duplicated"], line["never_sent"]) == (0, 0, 0)
    assert (line["unacknowledged"], line["connections_lost"], line["quarantined"]) == (0, 0, 0)


def test_latencies_are_seen_on_the_way(line: dict[str, object]) -> None:
    for name in ("ack_p50_ms", "stored_p50_ms"):
        latency_ms = line[name]
        assert isinstance(latency_ms, float)
        assert 0 < latency_ms < 10_000
    assert line["alerts_missing"] == 0
