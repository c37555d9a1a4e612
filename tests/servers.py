"""Fixtures of real servers, started when the first test asks and shared by the whole run.

A server is the environment's (POSTGRES_URL, RABBITMQ_URL, REDIS_URL, MOSQUITTO_URL) or a private
one, kept by a process of its own (deploy.local.keeper) for all workers of pytest-xdist. The
controlling process ends them; if it is killed, the keepers notice.

A test that kills a server takes one of its own: `Redis(tmp_path, find_redis())` and the like.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from deploy.local.processes import is_alive, wait_for

_RUN = "IIOT_TEST_RUN"
"""The environment variable that tells workers the run's directory; the controller sets it."""

_KEEPERS: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class SharedServer:
    """A running server. It is everybody's: leave no trace in it that another test could meet."""

    url: str

    def url_of(self, database: str) -> str:
        """Return the URL of another database (virtual host) on this server."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{database}"))


@pytest.fixture(scope="session")
def postgres_server() -> SharedServer:
    """PostgreSQL with a superuser's URL: the machine's own version, else the wheel's."""
    return _shared("postgres")


@pytest.fixture(scope="session")
def rabbitmq_server() -> SharedServer:
    """RabbitMQ with an administrator's URL of the virtual host `/`."""
    return _shared("rabbitmq")


@pytest.fixture(scope="session")
def redis_server() -> SharedServer:
    """Redis; flush nothing, prefix your keys."""
    return _shared("redis")


@pytest.fixture(scope="session")
def mosquitto_server() -> SharedServer:
    """Mosquitto, open to anyone; take client ids and topics of your own."""
    return _shared("mosquitto")


def pytest_configure(config: pytest.Config) -> None:
    """Make the run's directory, in the controlling process alone."""
    if hasattr(config, "workerinput") or _RUN in os.environ:
        return
    directory = Path(tempfile.mkdtemp(prefix="iiot-test-"))
    directory.chmod(0o755)  # the servers' own user must be able to enter
    os.environ[_RUN] = f"{directory}:{os.getpid()}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the keepers and remove what is left, in the controlling process alone."""
    directory, controller = _run()
    if hasattr(config, "workerinput") or controller != os.getpid():
        for process in _KEEPERS:
            process.returncode = 0  # it outlives us on purpose; Popen need not warn of that
        return
    keepers = [answer["keeper"] for answer in _answers(directory) if "keeper" in answer]
    for keeper in keepers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, keepers)), within_s=15.0)
    for process in _KEEPERS:
        process.wait(timeout=15.0)
    shutil.rmtree(directory, ignore_errors=True)
    del os.environ[_RUN]


def _shared(kind: str) -> SharedServer:
    """Return the run's server of this kind; the first to ask starts it, the others wait."""
    if given := os.environ.get(f"{kind.upper()}_URL"):
        return SharedServer(given)
    directory, controller = _run()
    said = directory / f"{kind}.json"
    with (directory / f"{kind}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            _start_keeper(kind, directory, controller)
        answer = json.loads(said.read_text())
    if "error" in answer:
        pytest.fail(answer["error"], pytrace=False)
    return SharedServer(answer["url"])


def _start_keeper(kind: str, directory: Path, controller: int) -> None:
    log = directory / f"{kind}.keeper.log"
    with log.open("ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "deploy.local.keeper", kind, str(directory), str(controller)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _KEEPERS.append(keeper)
    said = directory / f"{kind}.json"
    wait_for(lambda: said.exists() or keeper.poll() is not None, within_s=100.0)
    if not said.exists():
        pytest.fail(f"the keeper of {kind} did not answer:\n{log.read_text()}", pytrace=False)


def _run() -> tuple[Path, int]:
    directory, _, controller = os.environ[_RUN].rpartition(":")
    return Path(directory), int(controller)


def _answers(directory: Path) -> list[dict[str, int]]:
    return [json.loads(said.read_text()) for said in directory.glob("*.json")]
