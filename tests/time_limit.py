"""No test holds up the run: what does not end is ended, together with the process it runs in.

pytest-timeout raises once, in whatever runs at that moment. A task that swallows the exception, or
a fixture that waits for what will not come while it is torn down, goes on for ever after that. So
each test has a second, harder limit, which asks nobody: it says where every thread stands and ends
the process. pytest-xdist then reports the test as failed and ends the run, and the servers that the
process started die with it (deploy.local.processes).
"""

import faulthandler
import os
from collections.abc import Generator

import pytest

ENDING_S = 60.0
"""What a test has, beyond its timeout, to fail and to tear down what it stood on."""

_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the true stderr: what a test captures is lost with its process."""
    config.stash[_STDERR] = os.dup(2)
    faulthandler.enable(config.stash[_STDERR])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Arm the limit around setup, test and teardown together."""
    faulthandler.dump_traceback_later(
        _timeout_of(item) + ENDING_S, exit=True, file=item.config.stash[_STDERR]
    )
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name what failed when it fails: a run that is cut off has said it."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.outcome}: {report.nodeid} ({report.when}, {report.duration:.1f} s)")


def _timeout_of(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    if marker is None:
        return float(item.config.getini("timeout"))
    return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
