"""A child process with a log file: start it, wait until it is ready, stop it, kill it.

Everything here blocks for as long as it says; from async code call it through
`asyncio.to_thread`.
"""

import contextlib
import errno
import json
import os
import platform
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.local.errors import ServerFailed, ServerMissing

LOOPBACK = "127.0.0.1"

USUAL_PLACES = (Path("/usr/local/sbin"), Path("/usr/local/bin"), Path("/usr/sbin"), Path("/usr/bin"),
                Path("/sbin"), Path("/bin"), Path("/opt/homebrew/bin"))  # fmt: skip
"""Where servers lie when they are not on the PATH: a user's PATH often lacks the sbin folders."""

_LOG_LIMIT_BYTES = 10_000_000

# Below the range that outgoing connections take their ports from, so that none of them
# sits on a server's port when it starts again.
_PORTS = range(20_000, 32_000)

# A parent-death signal comes when the *thread* that started the child ends. This one lives as
# long as the interpreter, whichever thread asks.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="process-starter")


def find_program(name: str, places: Sequence[Path] = USUAL_PLACES) -> Path | None:
    """Return the program's path: from PATH first, then from `places`; None when in neither."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, places)))
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class Account:
    """A system user that a server runs as, because it must not (or need not) run as root."""

    uid: int
    gid: int

    @classmethod
    def for_directory(cls, directory: Path) -> "Account | None":
        """Return the account a server of this directory runs as; None for "as we are".

        Only root changes: to the directory's owner if that is not root, else to `nobody`.
        """
        if os.geteuid() != 0:
            return None
        if directory.exists() and (owned := directory.stat()).st_uid != 0:
            return cls(uid=owned.st_uid, gid=owned.st_gid)
        nobody = pwd.getpwnam("nobody")
        return cls(uid=nobody.pw_uid, gid=nobody.pw_gid)

    def may_reach(self, path: Path) -> bool:
        """Whether this account may enter every folder on the way to `path`."""
        return all(self._may_enter(folder.stat()) for folder in path.resolve().parents)

    def _may_enter(self, folder: os.stat_result) -> bool:
        if folder.st_uid == self.uid:
            return bool(folder.st_mode & stat.S_IXUSR)
        if folder.st_gid == self.gid:
            return bool(folder.st_mode & stat.S_IXGRP)
        return bool(folder.st_mode & stat.S_IXOTH)


def own_directory(path: Path, account: Account | None) -> Path:
    """Make `path` (mode 700) and give it and what is in it to the account."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account is not None:
        for entry in (path, *path.rglob("*")):
            os.chown(entry, account.uid, account.gid, follow_symlinks=False)
    return path


def run_as(
    account: Account | None, *, reaches: Sequence[Path], dies_with_us: signal.Signals | None
) -> list[str]:
    """Return the words to put before a command so that it runs as the account.

    When the account may not enter the folders above `reaches` (a checkout below a home of mode
    700), it gets the one capability to pass file permissions, and nothing else of root.
    `dies_with_us`: the signal that the child gets when this process ends, however that happens
    (Linux only; elsewhere a killed parent leaves its servers running).
    """
    setpriv = find_program("setpriv") if platform.system() == "Linux" else None
    words: list[str] = []
    if dies_with_us is not None:
        words += ["--pdeathsig", dies_with_us.name.removeprefix("SIG")]
    if account is not None:
        words += [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
        if not all(account.may_reach(path) for path in reaches):
            words += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
            # So that access(2), which PostgreSQL and Erlang ask first, counts it as well.
            words += ["--securebits=+no_setuid_fixup"]
    if setpriv is None:
        if account is not None:
            message = "setpriv is missing: install util-linux, or do not run this as root"
            raise ServerMissing(message)
        return []
    return [str(setpriv), *words, "--"] if words else []


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and as whom."""

    words: Sequence[str]
    account: Account | None = None
    reaches: Sequence[Path] = ()
    """Paths that the account must be able to open, besides the program itself."""
    env: Mapping[str, str] | None = None
    """The whole environment; None for ours."""
    cwd: Path | None = None

    def line(self, dies_with_us: signal.Signals | None) -> list[str]:
        reaches = (Path(self.words[0]), *self.reaches)
        return [*run_as(self.account, reaches=reaches, dies_with_us=dies_with_us), *self.words]


def run(command: Command, *, within_s: float = 60.0) -> str:
    """Run a command to its end and return what it printed.

    Raises ServerFailed with its output when it exits with anything but 0 or takes too long.
    """
    try:
        done = subprocess.run(
            command.line(None),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=command.env,
            cwd=command.cwd,
            timeout=within_s,
        )
    except subprocess.TimeoutExpired as late:
        message = f"{command.words[0]} took longer than {within_s:.0f} s"
        raise ServerFailed(message) from late
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        message = f"{command.words[0]} exited with {done.returncode}:\n{output}"
        raise ServerFailed(message)
    return output


class ServerProcess:
    """One server process: its log, its readiness, its end.

    The process leads a group of its own, so that a Ctrl-C at the terminal does not reach it
    before its owner has said goodbye to it.
    """

    def __init__(
        self, name: str, *, log: Path, stop_signal: signal.Signals = signal.SIGTERM
    ) -> None:
        self.name = name
        self.log = log
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            message = f"{self.name} was not started"
            raise ServerFailed(message)
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, command: Command) -> None:
        """Start it; its output goes to the end of the log. Returns at once: see `wait_until`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        line = command.line(self._stop_signal)
        with self.log.open("ab") as output:
            self._process = _starter.submit(
                subprocess.Popen[bytes],
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=command.env,
                cwd=command.cwd,
                start_new_session=True,
            ).result()

    def wait_until(self, is_ready: Callable[[], bool], *, within_s: float) -> None:
        """Return when `is_ready()` holds; raise ServerFailed when it ends or takes too long.

        A process that did not become ready in time is killed.
        """
        deadline = time.monotonic() + within_s
        pause_s = 0.005
        while not is_ready():
            if not self.is_running:
                raise self._failure(f"ended with exit code {self._exit_code}")
            if time.monotonic() > deadline:
                self.kill()
                raise self._failure(f"was not ready within {within_s:.0f} s")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.1)

    def stop(self, *, within_s: float = 15.0) -> None:
        """Ask it to end, and kill it when it has not within the time. Not running: nothing."""
        if self._process is None:
            return
        if self.is_running:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(within_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL to it and to all it started, and wait for that."""
        if self._process is None:
            return
        family = [self.pid, *_descendants(self.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        wait_for(lambda: not any(map(is_alive, family)), within_s=10.0)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    @property
    def _exit_code(self) -> int | None:
        return self._process.returncode if self._process is not None else None

    def _failure(self, what: str) -> ServerFailed:
        return ServerFailed(f"{self.name} {what}; its log ({self.log}) ends:\n{self.log_tail()}")


def wait_for(is_so: Callable[[], bool], *, within_s: float) -> bool:
    """Poll until `is_so()` holds; return whether it did within the time."""
    deadline = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs; one that has ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    process = Path(f"/proc/{pid}")
    try:
        after_name = (process / "stat").read_text().rpartition(")")[2]
        # The first thread of a killed process may be a zombie while others still hold its ports.
        threads = len(list((process / "task").iterdir()))
    except OSError:
        return not Path("/proc/self").exists()
    return threads > 1 or after_name.split()[0] not in {"Z", "X"}


def _descendants(pid: int) -> Iterator[int]:
    """Yield the ids of all processes below this one, parents first (Linux; elsewhere none)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    waiting = list(children.get(pid, ()))
    while waiting:
        child = waiting.pop(0)
        yield child
        waiting += children.get(child, ())


def is_port_free(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a server could listen on this loopback port now; of TCP, or with SOCK_DGRAM of UDP."""
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind is socket.SOCK_STREAM:
            # What servers set as well: connections that have just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            if kind is socket.SOCK_STREAM:
                # Only listening finds a port that another process has bound but not opened yet.
                probe.listen(1)
        except OSError as taken:
            if taken.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    for _ in range(1_000):
        port = random.choice(_PORTS)
        if is_port_free(port):
            return port
    message = f"no free port between {_PORTS.start} and {_PORTS.stop}"
    raise ServerFailed(message)


def free_from(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return this loopback port, or the next one that is free."""
    while not is_port_free(port, kind):
        port += 1
    return port


def keep_ports(file: Path, names: Sequence[str]) -> dict[str, int]:
    """Return a port for each name: those kept in `file` while they are free, else new ones.

    So a server has the same address after a restart, unless another took it meanwhile.
    """
    kept: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        kept = json.loads(file.read_text())
    ports = {name: kept.get(name, 0) for name in names}
    for name, port in ports.items():
        # A server that has just ended may need an instant to let go of it.
        if not port or not wait_for(partial(is_port_free, port), within_s=2.0):
            ports[name] = free_port()
    if ports != kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps(ports))
        unfinished.replace(file)
    return ports


def answers(port: int, greeting: bytes, expected: bytes) -> bool:
    """Whether the server on this loopback port answers `greeting` with `expected` at its start."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(greeting)
            answer = b""
            while len(answer) < len(expected):
                chunk = connection.recv(len(expected) - len(answer))
                if not chunk:
                    return False
                answer += chunk
    except OSError:
        return False
    return answer == expected
