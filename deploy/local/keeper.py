"""A process that keeps one private server for other processes, until one of them has ended.

`python -m deploy.local.keeper postgres DIRECTORY PID` starts the server below DIRECTORY, writes
DIRECTORY/postgres.json ({"url", "keeper"} or {"error"}), and waits for SIGTERM or for the
process PID to end; then it kills the server and removes its files. For test runs: their worker
processes come and go, and a run that is killed leaves no server behind.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.local import servers
from deploy.local.processes import is_alive

_MAKERS: dict[str, Callable[[Path], servers.Server]] = {
    "postgres": lambda directory: servers.postgres(directory, config={"max_connections": 200}),
    "rabbitmq": servers.rabbitmq,
    "redis": servers.redis,
    "mosquitto": servers.mosquitto,
}

_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def keep(kind: str, directory: Path, until_pid: int) -> None:
    """Start the server, say where it is, and return when it is no longer wanted."""
    place = directory / kind
    try:
        server = _MAKERS[kind](place)
        server.start()
    except Exception as error:
        _say(directory, kind, {"error": str(error)})
        raise
    # Only now: the server would inherit blocked signals. Until here they end us, and it with us.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    _say(directory, kind, {"url": server.url, "keeper": os.getpid()})
    while is_alive(until_pid) and signal.sigtimedwait(_ENDING, 0.5) is None:
        pass
    if not isinstance(server, servers.GivenServer):
        server.kill()
    shutil.rmtree(place, ignore_errors=True)
    if not is_alive(until_pid):
        _clean_up_after(directory, kind)


def _clean_up_after(directory: Path, kind: str) -> None:
    """Remove what the ended process would have; the last keeper removes the directory."""
    for file in directory.glob(f"{kind}.*"):
        file.unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()


def _say(directory: Path, kind: str, what: dict[str, str | int]) -> None:
    partial = directory / f"{kind}.json.new"
    partial.write_text(json.dumps(what))
    partial.rename(directory / f"{kind}.json")


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
