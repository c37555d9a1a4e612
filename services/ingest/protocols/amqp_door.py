"""The devices' AMQP broker as a door; the port is the broker's."""

from contextlib import AsyncExitStack

from starlette.datastructures import State

from services.ingest.adapters.rabbit_management import Management
from services.ingest.protocols.amqp import AmqpDevices, Limits, Tenants
from services.ingest.protocols.settings import AmqpSettings
from services.ingest.usecases.reception import Reception


class AmqpDoor:
    """Where devices come in by AMQP."""

    def __init__(self, settings: AmqpSettings, reception: Reception, tenants: Tenants) -> None:
        self._stack = AsyncExitStack()
        self._devices: AmqpDevices | None = None
        if settings.amqp_url is not None:
            management = settings.amqp_management_url
            self._devices = AmqpDevices(
                settings.amqp_url.get_secret_value(),
                reception,
                tenants,
                None if management is None else Management(management.get_secret_value()),
                Limits(settings.amqp_queue_bytes, settings.mqtt_packet_bytes),
            )

    async def open(self, state: State) -> None:
        """Connect to the broker, if there is to be AMQP, and welcome who logs in there."""
        devices = self._devices
        state.amqp = devices
        state.amqp_vhost = None if devices is None else devices.vhost
        state.welcome_at_broker = None if devices is None else devices.welcome
        if devices is not None:
            devices.start()
            self._stack.push_async_callback(devices.stop)

    async def stop(self) -> None:
        """Leave the broker; it keeps what comes."""
        await self._stack.aclose()
