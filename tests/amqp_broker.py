"""The private RabbitMQ that devices publish to, for an ingest that a test builds."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from deploy.local.devices_broker import DevicesBroker as Broker
from deploy.local.processes import LOOPBACK, free_port
from services.ingest.settings import Settings


class DevicesBroker(Broker):
    """The broker, and where ingest must serve HTTP so that it is asked."""

    def __init__(self, directory: Path) -> None:
        self.http_port = free_port()
        super().__init__(directory, self.http_port)

    def api(self) -> httpx2.AsyncClient:
        """Return a client of its management API, as ingest's own user."""
        parts = urlsplit(self.management_url)
        return httpx2.AsyncClient(
            base_url=f"http://{LOOPBACK}:{parts.port}/api/",
            auth=(parts.username or "", parts.password or ""),
        )

    def settings(self, settings: Settings) -> Settings:
        """Return an ingest's settings with which it is the broker's."""
        secret = type(settings.credentials_key)
        return settings.model_copy(
            update={
                "amqp_url": secret(self.url),
                "amqp_management_url": secret(self.management_url),
                "amqp_auth_key": secret(self.auth_key),
            }
        )


@pytest.fixture(scope="session")
def devices_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevicesBroker]:
    """One for all tests of this process: it takes 5 to 10 s to start."""
    broker = DevicesBroker(tmp_path_factory.mktemp("devices-broker"))
    broker.start()
    yield broker
    broker.stop()
