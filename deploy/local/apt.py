"""Installing servers from Debian's or Ubuntu's packages, without starting their own services."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.local.errors import ServerFailed
from deploy.local.processes import find_program

_POLICY = Path("/usr/sbin/policy-rc.d")
_UNITS = Path("/lib/systemd/system")


def may_install() -> bool:
    """Whether this is a Debian-like machine and we are root."""
    return os.geteuid() == 0 and find_program("apt-get") is not None


def install(packages: Sequence[str], *, policy: Path = _POLICY) -> None:
    """Install the packages; none of their services is started, now or at the next boot.

    Raises ServerFailed when apt does, after its output went to the terminal.
    """
    with _no_service_starts(policy):
        _apt_get("update", "--quiet=2")
        _apt_get("install", "--quiet=2", "--yes", "--no-install-recommends", *packages)
    systemctl = find_program("systemctl")
    if systemctl is not None and Path("/run/systemd/system").is_dir():
        # They were missing a moment ago, so nobody relies on their units. A client has none.
        for package in packages:
            if package != "postgresql" and (_UNITS / f"{package}.service").exists():
                subprocess.run([systemctl, "disable", "--quiet", package], check=False)


def _apt_get(*words: str) -> None:
    print(f"apt-get {' '.join(words)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(["apt-get", *words], check=False, env=environment).returncode != 0:
        message = f"apt-get {' '.join(words)} failed: see its output above"
        raise ServerFailed(message)


@contextmanager
def _no_service_starts(policy: Path) -> Iterator[None]:
    """Have Debian's policy script forbid every service action, and put back what was there.

    The packages' install scripts ask it, under systemd, System V init and none alike.
    """
    kept = policy.with_name(f"{policy.name}.kept-by-iiot")
    if policy.exists():
        policy.rename(kept)
    try:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)
        if kept.exists():
            kept.rename(policy)
