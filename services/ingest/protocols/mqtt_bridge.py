"""The bridge to another MQTT broker: a site's own Mosquitto, HiveMQ or EMQX.

A subscriber with a persistent session. The broker is acknowledged when a message is durable here,
never before, so what we had not stored when we died comes again. What the broker itself may lose
between its publisher and us (Mosquitto acknowledges before it is on disk) nobody can bring back.
"""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import UUID

import aiomqtt
import structlog

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.errors import AppError, NotFound, TooLarge
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Window, decode
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Done, Intake

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
MOST_QUEUED = 10_000
"""Messages read and not yet taken. With QoS 1 the broker stops far below: it waits for us when so many
are not acknowledged as it allows (Mosquitto: `max_inflight_messages`, 20). With QoS 0, which promises
nothing, what is beyond is dropped."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to listen, to what, and for which tenant.

    `url` is mqtt://user:password@host:port or mqtts://…; `ca` is whom to trust with mqtts://, None
    for those the system trusts. In `topic` the first `+` is the device's id. `client_id` is stable:
    by it the broker keeps what comes while we are away.
    """

    url: str
    topic: str
    tenant_id: UUID
    client_id: str
    ca: Path | None = None


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
        most_bytes: int,
    ) -> None:
        self._broker = broker
        self._sources = sources
        self._intake = intake
        self._clock = clock
        self._past = past
        self._ahead = ahead
        self._most_bytes = most_bytes
        self._tls = _tls(broker)
        self._level = broker.topic.split("/").index("+")
        self._known: dict[UUID, Source] = {}
        self._client: aiomqtt.Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self.is_connected = False
        self.pause_s = FIRST_PAUSE_S
        """How long to wait before the next attempt to connect, if this one fails."""
        intake.on_room.append(self._room.set)
        sources.on_revoked.append(lambda device_id, _: self._forget(device_id))

    @property
    def waiting(self) -> int:
        """How many messages were read from the broker and are not taken yet."""
        return 0 if self._client is None else len(self._client.messages)

    def start(self) -> None:
        """Connect, and stay connected."""
        self._task = asyncio.create_task(self._run(), name="ingest.bridge")

    async def stop(self) -> None:
        """Disconnect. The broker keeps what comes meanwhile."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:
                if isinstance(error, aiomqtt.MqttError) or is_transient(error):
                    log.warning(
                        "the bridge is down", client=self._broker.client_id, error=str(error)
                    )
                else:
                    # Ours to find. A bridge that ended for it would be missed by nobody.
                    log.exception("the bridge failed", client=self._broker.client_id)
            finally:
                self._client = None
                self.is_connected = False
            await asyncio.sleep(self.pause_s)
            self.pause_s = min(LONGEST_PAUSE_S, 2 * self.pause_s)

    async def _listen(self) -> None:
        parts = urlsplit(self._broker.url)
        client = aiomqtt.Client(
            hostname=parts.hostname or "localhost",
            port=parts.port or (8883 if parts.scheme == "mqtts" else 1883),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            identifier=self._broker.client_id,
            clean_session=False,
            tls_context=self._tls,
            max_queued_incoming_messages=MOST_QUEUED,
        )
        # aiomqtt 2 acknowledges on receipt and has no public way to ask for more.
        client._client.manual_ack_set(True)
        async with client:
            await client.subscribe(self._broker.topic, qos=1)
            self._client = client
            self.is_connected = True
            self.pause_s = FIRST_PAUSE_S
            log.info("the bridge is up", client=self._broker.client_id, topic=self._broker.topic)
            async for message in client.messages:
                await self._take(client, message)

    async def _take(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        done = self._acknowledgement(client, message)
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
        try:
            await self._take_payload(source, message.payload, now, done)
        except Exception as error:
            if is_transient(error):
                raise  # not acknowledged, so it comes again
            slug, detail = "internal", "the platform failed to take it"
            if isinstance(error, AppError):
                slug, detail = error.slug, error.detail
            else:
                # Ours to find. Unacknowledged it would come again for ever, before all others.
                log.exception("a message could not be taken", topic=str(message.topic))
            self._intake.refuse_message(
                source, slug, detail, message.payload, done, received_at=now
            )

    async def _take_payload(
        self, source: Source, payload: bytes, now: datetime, done: Done
    ) -> None:
        if len(payload) > self._most_bytes:
            raise TooLarge(f"{len(payload)} bytes, where at most {self._most_bytes} are taken")
        decoded = decode(payload, now, Window.around(now, past=self._past, ahead=self._ahead))
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

    def _acknowledgement(self, client: aiomqtt.Client, message: aiomqtt.Message) -> Done:
        def acknowledge() -> None:
            if message.qos:
                client._client.ack(message.mid, message.qos)

        return acknowledge

    def _forget(self, device_id: UUID) -> None:
        self._known.pop(device_id, None)


def _tls(broker: Broker) -> ssl.SSLContext | None:
    if urlsplit(broker.url).scheme != "mqtts":
        return None
    return ssl.create_default_context(cafile=broker.ca)
