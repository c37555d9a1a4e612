"""The bench of ingest, small and short: it runs, ends by itself, and its line holds what is promised."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.report import Figure
from tests.bench.soak import NONE_OF, judge

ROOT = Path(__file__).parents[2]
FIGURES = {
    "points_per_s", "kept_up", "cpu_s_per_million_points", "cpu_s_per_million_points_by_process",
    "generator_cpu_s_per_million_points", "ack_p50_ms", "ack_p99_ms", "stored_p50_ms",
    "stored_p99_ms", "alert_p50_ms", "alert_p99_ms", "ws_p50_ms", "ws_p99_ms", "ws_samples", "lost",
    "duplicated", "never_sent", "queue_depth", "peak_rss_mb", "peak_pss_mb",
    "memory_growth_mb_per_h", "machine", "commit", "mode", "seconds", "offered_points_per_s",
    "connections", "rules", "shards", "processes",
}  # fmt: skip
PROCESSES = {
    "cluster": {"gateway", "ingest", "ingest-writer", "rules", "alerting", "postgres", "rabbitmq"},
    "edge": {"edge", "postgres"},
}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=["cluster", "edge"])
def line(request: pytest.FixtureRequest) -> dict[str, Figure]:
    words = (
        "--json --seconds 2 --latency-seconds 2 --rate 2000 --connections 50 --rules 5 --shards 3"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ingest", "--mode", request.param, *words.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [only] = done.stdout.splitlines()
    figures: dict[str, Figure] = json.loads(only)
    assert figures["mode"] == request.param
    return figures


def number(figure: Figure) -> float:
    assert isinstance(figure, int | float)
    return figure


def test_the_line_holds_every_figure(line: dict[str, Figure]) -> None:
    assert line.keys() >= FIGURES
    assert line["shards"] == 3


def test_every_acknowledged_point_is_stored_once_and_everything_is_read(
    line: dict[str, Figure],
) -> None:
    assert {name: line[name] for name in NONE_OF} == dict.fromkeys(NONE_OF, 0)


def test_it_says_which_process_costs_what(line: dict[str, Figure]) -> None:
    costs = line["cpu_s_per_million_points_by_process"]
    assert isinstance(costs, dict)
    assert costs.keys() >= PROCESSES[str(line["mode"])]
    assert number(line["cpu_s_per_million_points"]) == pytest.approx(sum(costs.values()), abs=0.2)


@pytest.mark.parametrize("name", ["ack", "stored", "alert", "ws"])
def test_latencies_are_seen_on_the_way(line: dict[str, Figure], name: str) -> None:
    assert 0 < number(line[f"{name}_p50_ms"]) <= number(line[f"{name}_p99_ms"]) < 10_000


def test_a_soak_takes_longer_than_that(line: dict[str, Figure]) -> None:
    assert any("too short to judge memory" in failure for failure in judge(line))
