"""A private Mosquitto, the site's own MQTT broker that the MQTT bridge reads from."""

from collections.abc import Sequence
from pathlib import Path

from deploy.local.errors import ServerMissing
from deploy.local.private import PrivateServer
from deploy.local.processes import (
    LOOPBACK,
    USUAL_PLACES,
    Account,
    Command,
    answers,
    find_program,
    own_directory,
)

# MQTT 3.1.1: CONNECT of the client "ready" with a clean session, and CONNACK "accepted".
_CONNECT = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x05\x00\x05ready"
_CONNACK = b"\x20\x02\x00\x00"


def find_mosquitto(places: Sequence[Path] = USUAL_PLACES) -> Path:
    """Return the broker's program. Raises ServerMissing with one line when there is none."""
    found = find_program("mosquitto", places)
    if found is None:
        message = "Mosquitto is missing: apt-get install mosquitto (or set MOSQUITTO_URL)"
        raise ServerMissing(message)
    return found


class Mosquitto(PrivateServer):
    """A private Mosquitto with persistent sessions, open to anyone on the loopback address.

    Sessions and queued messages survive `stop()`. After `kill()` some of what it acknowledged
    may be gone: it writes its database every few seconds.
    """

    name = "Mosquitto"

    def __init__(self, directory: Path, program: Path, *, config: Sequence[str] = ()) -> None:
        """`config`: further lines of mosquitto.conf, such as "max_inflight_messages 1000"."""
        super().__init__(directory)
        self._program = program
        self._config = tuple(config)

    @property
    def url(self) -> str:
        return f"mqtt://{LOOPBACK}:{self.port}"

    def _start(self, within_s: float) -> None:
        account = Account.for_directory(self._data)
        port = self._take_ports("port")["port"]
        self._data.mkdir(parents=True, exist_ok=True)
        lines = (
            f"listener {port} {LOOPBACK}",
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {self._data}/",
            "autosave_interval 5",
            *self._config,
            "",
        )
        configuration = self._data / "mosquitto.conf"
        configuration.write_text("\n".join(lines))
        own_directory(self._data, account)
        words = [str(self._program), "-c", str(configuration)]
        self._process.start(Command(words, account, reaches=[self._data], cwd=self._data))
        self._process.wait_until(lambda: answers(port, _CONNECT, _CONNACK), within_s=within_s)
