"""The private RabbitMQ that devices publish to, configured as that of deploy/compose.amqp.yml."""

import json
import re
import secrets
from pathlib import Path

from deploy.local.processes import LOOPBACK
from deploy.local.rabbitmq import RabbitMQ, find_rabbitmq
from deploy.secrets import (
    DEVICES_HOST,
    DEVICES_USER,
    devices_broker_asks,
    devices_broker_definitions,
)

CONF = Path(__file__).resolve().parents[1] / "rabbitmq-devices.conf"
PLUGINS = CONF.with_suffix(".plugins")


class DevicesBroker:
    """The broker; it asks the ingest that serves HTTP at `ingest_port` of this machine.

    Its data, its password and its ports are those of the directory, and stay.
    """

    def __init__(self, directory: Path, ingest_port: int) -> None:
        self._passwords = _kept_passwords(directory / "passwords.json")
        definitions = directory / "data" / "definitions.json"
        definitions.parent.mkdir(parents=True, exist_ok=True)
        definitions.write_text(
            json.dumps(devices_broker_definitions(self._passwords["user"], self._passwords["salt"]))
        )
        asks = devices_broker_asks(f"http://{LOOPBACK}:{ingest_port}", self.auth_key)
        self.server = RabbitMQ(
            directory,
            find_rabbitmq(),
            plugins=re.findall(r"\w+", PLUGINS.read_text()),
            config={
                **_lines(CONF.read_text()),
                **_lines(asks),
                "definitions.local.path": str(definitions),
                "disk_free_limit.absolute": "200MB",
            },
        )

    @property
    def auth_key(self) -> str:
        """What it shows ingest."""
        return self._passwords["auth_key"]

    @property
    def port(self) -> int:
        """Where devices connect."""
        return self.server.port

    @property
    def url(self) -> str:
        """The URL by which ingest connects."""
        return self.url_of(DEVICES_USER, self._passwords["user"])

    @property
    def management_url(self) -> str:
        """The URL of its management API, for ingest."""
        user = f"{DEVICES_USER}:{self._passwords['user']}"
        return f"http://{user}@{LOOPBACK}:{self.server.management_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of an ingest that reads from it."""
        return {
            "INGEST_AMQP_URL": self.url,
            "INGEST_AMQP_MANAGEMENT_URL": self.management_url,
            "INGEST_AMQP_AUTH_KEY": self.auth_key,
        }

    def url_of(self, user: object, password: str, vhost: str = DEVICES_HOST) -> str:
        """Return the URL by which a user, such as a device, connects."""
        return f"amqp://{user}:{password}@{LOOPBACK}:{self.server.port}/{vhost}"

    def start(self) -> None:
        """Start it; it serves on return."""
        self.server.start()

    def stop(self) -> None:
        """End it."""
        self.server.stop()


def _lines(conf: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([\w.]+) = (.+)$", conf))


def _kept_passwords(file: Path) -> dict[str, str]:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        drawn = {"user": 24, "salt": 4, "auth_key": 32}
        file.write_text(json.dumps({name: secrets.token_hex(size) for name, size in drawn.items()}))
    kept: dict[str, str] = json.loads(file.read_text())
    return kept
