"""A private RabbitMQ node: its own directory, ports, cookie and Erlang port mapper."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import ServerMissing
from deploy.local.private import PrivateServer
from deploy.local.processes import (
    LOOPBACK,
    USUAL_PLACES,
    Account,
    Command,
    ServerProcess,
    answers,
    find_program,
    own_directory,
    run,
)

# Not /usr/sbin/rabbitmq-server: that wrapper insists on being root or the user `rabbitmq`.
SCRIPT_PLACES = (
    Path("/usr/lib/rabbitmq/bin"),
    *Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"),
    *Path("/opt").glob("rabbitmq_server-*/sbin"),
    Path("/opt/homebrew/opt/rabbitmq/sbin"),
)
EPMD_PLACES = (
    *USUAL_PLACES,
    *Path("/usr/lib/erlang").glob("erts-*/bin"),
    *Path("/usr/local/lib/erlang").glob("erts-*/bin"),
)

_AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
_START_METHOD = b"\x01\x00\x00"  # a method frame on channel 0: the broker's Connection.Start
_EPMD_NAMES_REQUEST = b"\x00\x01n"


@dataclass(frozen=True, slots=True)
class RabbitPrograms:
    """The folder of RabbitMQ's scripts, and Erlang's port mapper."""

    scripts: Path
    epmd: Path


def find_rabbitmq(
    script_places: Sequence[Path] = SCRIPT_PLACES, epmd_places: Sequence[Path] = EPMD_PLACES
) -> RabbitPrograms:
    """Return the broker's programs. Raises ServerMissing with one line when there are none."""
    epmd = find_program("epmd", epmd_places)
    for folder in script_places:
        if epmd is not None and os.access(folder / "rabbitmq-server", os.X_OK):
            return RabbitPrograms(scripts=folder, epmd=epmd)
    message = "RabbitMQ is missing: apt-get install rabbitmq-server (or set RABBITMQ_URL)"
    raise ServerMissing(message)


class RabbitMQ(PrivateServer):
    """A private RabbitMQ node on loopback ports; user and password `guest`.

    Ready in 5 to 10 s, 150 MB of memory: start it first, and once. After `kill()` a start finds
    the same data at the same address.
    """

    name = "RabbitMQ"

    def __init__(
        self,
        directory: Path,
        programs: RabbitPrograms,
        *,
        plugins: Sequence[str] = (),
        config: Mapping[str, str | int] | None = None,
    ) -> None:
        """`plugins`: such as "rabbitmq_prometheus"; `config`: further lines of rabbitmq.conf."""
        super().__init__(directory)
        self._programs = programs
        self._plugins = tuple(plugins)
        self._config = dict(config or {})
        self._epmd = ServerProcess("epmd", log=self.directory / "epmd.log")

    @property
    def url(self) -> str:
        """The URL of the virtual host `/`."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}/"

    @property
    def prometheus_port(self) -> int:
        """Where /metrics is, if the plugin rabbitmq_prometheus was asked for."""
        return self._port_of("prometheus")

    @property
    def management_port(self) -> int:
        """Where the HTTP API is, if the plugin rabbitmq_management was asked for."""
        return self._port_of("management")

    def stop(self) -> None:
        """End the node cleanly, then its port mapper."""
        super().stop()
        self._epmd.stop()

    def kill(self) -> None:
        super().kill()
        self._epmd.kill()

    def save_declarations(self) -> None:
        """Put queues, exchanges and bindings that were just declared on disk.

        A confirm covers messages, not these: a `kill()` within a second of a declaration may
        lose a durable queue, and the confirmed messages with it.
        """
        self.control("eval", "mnesia:sync_log().")

    def control(self, *words: str, program: str = "rabbitmqctl") -> str:
        """Run rabbitmqctl (or rabbitmq-diagnostics, -queues) on the node; return what it says."""
        return run(self._command(Account.for_directory(self._data), [program, "--quiet", *words]))

    def _start(self, within_s: float) -> None:
        account = self._prepare()
        self._start_epmd(account)
        self._process.start(self._command(account, ["rabbitmq-server"]))
        self._process.wait_until(
            lambda: answers(self.port, _AMQP_GREETING, _START_METHOD), within_s=within_s
        )

    def _prepare(self) -> Account | None:
        """Write the node's configuration; return the account it runs as."""
        for folder in ("mnesia", "log", "home"):
            (self._data / folder).mkdir(parents=True, exist_ok=True)
        account = Account.for_directory(self._data)
        self._take_ports("port", "distribution", "epmd", "prometheus", "management")
        settings: dict[str, str | int] = {
            "listeners.tcp.1": f"{LOOPBACK}:{self._ports['port']}",
            "distribution.listener.interface": LOOPBACK,
            "vm_memory_high_watermark.absolute": "1GB",
            "disk_free_limit.absolute": "200MB",
            # Quorum queues keep what is in this log in memory: by default, up to half of the above.
            "raft.wal_max_size_bytes": 64_000_000,
            "log.console": "true",
            "log.file": "false",
        }
        if "rabbitmq_prometheus" in self._plugins:
            settings["prometheus.tcp.ip"] = LOOPBACK
            settings["prometheus.tcp.port"] = self._ports["prometheus"]
        if "rabbitmq_management" in self._plugins:
            settings["management.tcp.ip"] = LOOPBACK
            settings["management.tcp.port"] = self._ports["management"]
        settings |= self._config
        lines = [f"{name} = {value}" for name, value in settings.items()]
        (self._data / "rabbitmq.conf").write_text("\n".join([*lines, ""]))
        (self._data / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        own_directory(self._data, account)
        return account

    def _start_epmd(self, account: Account | None) -> None:
        """Start the port mapper in the foreground; Erlang would leave one behind as a daemon."""
        if self._epmd.is_running:
            return
        port = self._ports["epmd"]
        words = [str(self._programs.epmd), "-port", str(port), "-address", LOOPBACK]
        self._epmd.start(Command(words, account, env=self._env(), cwd=self._data))
        expected = port.to_bytes(4, "big")
        self._epmd.wait_until(lambda: answers(port, _EPMD_NAMES_REQUEST, expected), within_s=10.0)

    def _command(self, account: Account | None, words: Sequence[str]) -> Command:
        script, *rest = words
        line = [str(self._programs.scripts / script), *rest]
        return Command(line, account, reaches=[self._data], env=self._env(), cwd=self._data)

    def _env(self) -> dict[str, str]:
        """Return an environment in which nothing of another node's settings is left."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))
        }
        data = self._data
        return inherited | {
            "HOME": str(data / "home"),
            "RABBITMQ_NODENAME": "iiot@localhost",
            "RABBITMQ_NODE_PORT": str(self._ports["port"]),
            # Else it is the node's port and 20,000: where outgoing connections have theirs.
            "RABBITMQ_DIST_PORT": str(self._ports["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(data / "log"),
            "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(data / "pid"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "schema"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(data / "feature_flags"),
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_LOG": "info,-color",
            # Schedulers that spin while idle would take the other servers' processor time.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }
