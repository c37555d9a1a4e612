"""The bridge to another MQTT broker: a site's own Mosquitto, HiveMQ or EMQX.

A subscriber with a persistent session. The broker is acknowledged when a message is durable here,
never before, so what we had not stored when we died comes again. What the broker itself may lose
between its publisher and us (Mosquitto acknowledges before it is on disk) nobody can bring back.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import unquote, urlsplit
from uuid import UUID

import aiomqtt
import structlog

from libs.common.clock import Clock
from libs.common.errors import AppError, NotFound
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Window, decode
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Intake

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
MOST_QUEUED = 10_000
"""Messages read and not yet taken. With QoS 1 the broker stops far below; with QoS 0, which promises
nothing, what is beyond is dropped."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to listen, to what, and for which tenant.

    `url` is mqtt://user:password@host:port or mqtts://…; in `topic` the first `+` is the device's
    id. `client_id` is stable: by it the broker keeps what comes while we are away.
    """

    url: str
    topic: str
    tenant_id: UUID
    client_id: str


class Bridge:
    """Brings one broker's telemetry in."""

    def __init__(
        self,
        broker: Broker,
        sources: Sources,
        intake: Intake,
        clock: Clock,
        *,
        past: timedelta,
        ahead: timedelta,
    ) -> None:
        self._broker = broker
        self._sources = sources
        self._intake = intake
        self._clock = clock
        self._past = past
        self._ahead = ahead
        self._level = broker.topic.split("/").index("+")
        self._known: dict[UUID, Source] = {}
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self.is_connected = False
        intake.on_room.append(self._room.set)
        sources.on_revoked.append(lambda device_id, _: self._forget(device_id))

    def start(self) -> None:
        """Connect, and stay connected."""
        self._task = asyncio.create_task(self._run(), name="ingest.bridge")

    async def stop(self) -> None:
        """Disconnect. The broker keeps what comes meanwhile."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._listen()
            except (aiomqtt.MqttError, OSError, AppError) as error:
                log.warning("the bridge is down", broker=self._broker.client_id, error=str(error))
            except Exception:
                log.exception("the bridge failed", broker=self._broker.client_id)
            finally:
                if self.is_connected:
                    pause_s = FIRST_PAUSE_S
                self.is_connected = False
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _listen(self) -> None:
        parts = urlsplit(self._broker.url)
        client = aiomqtt.Client(
            hostname=parts.hostname or "localhost",
            port=parts.port or (8883 if parts.scheme == "mqtts" else 1883),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            identifier=self._broker.client_id,
            clean_session=False,
            tls_params=aiomqtt.TLSParameters() if parts.scheme == "mqtts" else None,
            max_queued_incoming_messages=MOST_QUEUED,
        )
        # aiomqtt 2 acknowledges on receipt and has no public way to ask for more.
        client._client.manual_ack_set(True)
        async with client:
            await client.subscribe(self._broker.topic, qos=1)
            self.is_connected = True
            log.info("the bridge is up", broker=self._broker.client_id, topic=self._broker.topic)
            async for message in client.messages:
                await self._take(client, message)

    async def _take(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        done = self._acknowledgement(client, message)
        payload = message.payload
        source = await self._source_of(str(message.topic))
        if source is None:
            # No tenant's device: there is nobody in whose quarantine it could lie.
            log.warning("the bridge heard of an unknown device", topic=str(message.topic))
            done()
            return
        while self._intake.is_full:
            self._room.clear()
            await self._room.wait()
        now = self._clock.now()
        window = Window.around(now, past=self._past, ahead=self._ahead)
        try:
            decoded = decode(payload, now, window)
        except AppError as error:
            self._intake.refuse_message(source, error.slug, error.detail, payload, done)
            return
        if not self._intake.knows(source, decoded.points):
            await self._intake.register(source, decoded)
        self._intake.add(source, decoded, done)

    async def _source_of(self, topic: str) -> Source | None:
        try:
            device_id = UUID(topic.split("/")[self._level])
        except (ValueError, IndexError):
            return None
        source = self._known.get(device_id)
        if source is None:
            try:
                source = await self._sources.of_tenant(self._broker.tenant_id, device_id)
            except NotFound:
                return None
            self._known[device_id] = source
        return source

    def _acknowledgement(
        self, client: aiomqtt.Client, message: aiomqtt.Message
    ) -> Callable[[], None]:
        def acknowledge() -> None:
            if message.qos:
                client._client.ack(message.mid, message.qos)

        return acknowledge

    def _forget(self, device_id: UUID) -> None:
        self._known.pop(device_id, None)
