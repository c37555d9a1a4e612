"""One ingest for the suite: real PostgreSQL, the local bus that a test may stop, real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
import uvloop

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.amqp_broker import DevicesBroker
from tests.contract.devices.driver import DeviceDriver, Identity, Promise, Site
from tests.contract.devices.drivers import AT_BROKERS, DRIVERS
from tests.contract.devices.promises import said_of
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running, serving
from tests.waiting import until

Holds = Callable[[Promise], bool]
"""Whether the protocol makes a promise."""


class StoppableBus(LocalBus):
    """A bus that takes nothing while it is away."""

    is_away = False
    refused = 0

    async def publish(self, messages: Sequence[Message]) -> None:
        if self.is_away:
            self.refused += 1
            raise Unavailable("the bus is away")
        await super().publish(messages)


@dataclass(slots=True)
class Plant:
    """A running ingest, and devices of one protocol that come in."""

    world: World
    bus: StoppableBus
    kind: type[DeviceDriver]
    site: Site
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def register(self) -> Identity:
        """Register a device."""
        return Identity(*await self.world.device())

    async def come(self, device: Identity) -> DeviceDriver:
        """Come in as a device; it leaves at the end of the test."""
        driver = await self.kind.connect(self.site, device)
        self._open.push_async_callback(driver.close)
        return driver

    async def device(self) -> tuple[UUID, DeviceDriver]:
        """Return a new device that is in, with its id."""
        identity = await self.register()
        return identity.device_id, await self.come(identity)

    async def quarantined(self, device_id: UUID) -> list[str]:
        """Return the reasons for which something of the device's lies in quarantine."""
        answer = await self.world.http.get(
            f"/api/v1/telemetry/quarantine?device_id={device_id}", headers=self.world.headers
        )
        assert answer.status_code == 200, answer.text
        return [entry["reason"] for entry in answer.json()["items"]]

    async def leave(self) -> None:
        """Have all devices leave."""
        await self._open.aclose()


@pytest.fixture(params=[*DRIVERS, *AT_BROKERS], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[DeviceDriver]:
    """Each protocol in turn."""
    found: type[DeviceDriver] = request.param
    return found


@pytest.fixture
def broker(kind: type[DeviceDriver], request: pytest.FixtureRequest) -> DevicesBroker | None:
    """The broker that devices of this protocol come to; None if they come to ingest itself."""
    if kind not in AT_BROKERS:
        return None
    found: DevicesBroker = request.getfixturevalue("devices_broker")
    return found


@pytest.fixture
async def plant(
    kind: type[DeviceDriver],
    broker: DevicesBroker | None,
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[Plant]:
    """An ingest with the protocol's door open, on any free port."""
    stoppable = StoppableBus(database_urls.bus, SystemClock())
    settings = Settings(
        database_url=database_urls.rw("ingest"),
        engine_database_url=database_urls.engine("ingest"),
        historian_writer_url=database_urls.writer,
        mqtt_host="127.0.0.1",
        mqtt_port=0,
    )
    if broker is not None:
        settings = broker.settings(settings)
    elif kind.port_setting != "http":
        settings = settings.model_copy(update={kind.port_setting: 0})
    app = build(settings, stoppable, SystemClock(), keys=keys)
    tenant_id = uuid4()
    headers = principal_headers(tenant_id)
    try:
        async with (
            running(app, stoppable, database_urls, tenant_id, headers) as world,
            serving(app, 0 if broker is None else broker.http_port) as http_port,
        ):
            if broker is not None:
                await until(lambda: app.state.amqp.is_up, "ingest reads from the broker")
                port = broker.port
            elif kind.port_setting == "http":
                port = http_port
            else:
                port = getattr(app.state, kind.port_setting)
            site = Site("127.0.0.1", port, world.http, headers)
            plant = Plant(world, stoppable, kind, site)
            try:
                yield plant
            finally:
                stoppable.is_away = False
                await plant.leave()
    finally:
        await stoppable.stop()


@pytest.fixture
def makes(kind: type[DeviceDriver]) -> Holds:
    """Whether the protocol makes a promise; if it does not, its column must give the same reason."""

    def holds(promise: Promise) -> bool:
        reason = kind.exempt.get(promise)
        if reason is not None:
            assert said_of(kind, promise).startswith(f"exempt: {reason}")
        return reason is None

    return holds


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the loop that serves: its transports are not asyncio's own."""
    return {"uvloop": uvloop.new_event_loop}
