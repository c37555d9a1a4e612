"""What every bench says in the same way: progress, the machine, the commit, and the one JSON line."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import psutil

ROOT = Path(__file__).resolve().parents[2]

Figure: TypeAlias = "str | int | float | Mapping[str, Figure] | Sequence[Figure] | None"
"""A figure of the line; None for what this run could not measure."""

_began = time.monotonic()


def say(text: str) -> None:
    """Tell the person who waits how far it is, on stderr."""
    print(f"[{time.monotonic() - _began:6.1f} s] {text}", file=sys.stderr, flush=True)


def print_report(figures: Mapping[str, Figure], *, mode: str, as_json: bool) -> None:
    """Print the figures on stdout, and where they come from: one JSON line, or a line each for people."""
    line = {**figures, "mode": mode, "machine": machine(), "commit": commit()}
    if as_json:
        print(json.dumps(line), flush=True)
        return
    for name, figure in line.items():
        print(f"{name:36} {figure if isinstance(figure, str) else json.dumps(figure)}")


def machine() -> str:
    """Return the machine in a few words: cores, processor, memory, system."""
    memory_gb = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} x {_processor()}, {memory_gb:.0f} GB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def commit() -> str:
    """Return the commit of the checkout, with "+" if it was changed since; "none" without one."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "none"
    return head + ("+" if _git("status", "--porcelain") else "")


def percentile_ms(seconds: npt.NDArray[np.float64], percent: float) -> float | None:
    """Return a percentile in ms, of durations in seconds; None of nothing."""
    return round(float(np.percentile(seconds, percent)) * 1000, 1) if len(seconds) else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
