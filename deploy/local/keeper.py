"""A process that keeps one private server for other processes, until one of them has ended.

`python -m deploy.local.keeper postgres DIRECTORY PID` starts the server below DIRECTORY, writes
DIRECTORY/postgres.json ({"url", "keeper"} or {"error"}), and waits for SIGTERM or for the
process PID to end; then it kills the server and removes its files. For test runs: their worker
processes come and go, and a run that is killed leaves no server behind.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from deploy.local import servers
from deploy.local.processes import is_alive

_POSTGRES: dict[str, str | int] = {
    "max_connections": 500,
    # Its files go with it: what it acknowledged need survive a killed process, not a power cut.
    "fsync": "off",
    "full_page_writes": "off",
    # Tests connect ten thousands of times, and SCRAM is slow on purpose, on both sides.
    "password_encryption": "md5",
}


def _postgres(directory: Path) -> servers.Server:
    """Return a server that is quick to write and to let in; it knows its users by password all the same."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    access = directory / "access.conf"
    access.write_text("host all all 127.0.0.1/32 md5\n")
    access.chmod(0o644)
    return servers.postgres(directory, config={**_POSTGRES, "hba_file": str(access)})


async def _keep_password_anew(url: str) -> None:
    """Set the superuser's password once more: initdb kept it for SCRAM."""
    parts = urlsplit(url)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"ALTER ROLE {parts.username} PASSWORD '{parts.password}'")
    finally:
        await connection.close()


_MAKERS: dict[str, Callable[[Path], servers.Server]] = {
    "postgres": _postgres,
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
        if kind == "postgres" and not isinstance(server, servers.GivenServer):
            asyncio.run(_keep_password_anew(server.url))
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
