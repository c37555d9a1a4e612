"""Whoever starts the cluster, and however, can end it."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from deploy.local.cluster import heed_signals
heed_signals()
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    signal.pause()
except KeyboardInterrupt:
    print("in order")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cluster_started_in_the_background_ends_in_order(number: signal.Signals) -> None:
    # What a shell does for `make cluster &`.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(int(number))],
            stdout=subprocess.PIPE,
            text=True,
        ) as started:
            try:
                said, _ = started.communicate(timeout=30)
            finally:
                started.kill()
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == "in order\n"
