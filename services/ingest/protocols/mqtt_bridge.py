"""The bridge to another MQTT broker: a site's own Mosquitto, HiveMQ or EMQX.

A subscriber with a persistent session. The broker is acknowledged when a message is durable here,
never before, so what we had not stored when we died comes again. What the broker itself may lose
between its publisher and us (Mosquitto acknowledges before it is on disk) nobody can bring back.
"""

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import aiomqtt
import msgspec
import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from libs.common.bus.outcome import is_transient
from libs.common.errors import Conflict, Forbidden, Invalid, Malformed, Unavailable
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing, to_json
from services.ingest.domain.connector import State
from services.ingest.domain.device import Source
from services.ingest.domain.gateway import is_a_name
from services.ingest.domain.payload import (
    Decoded,
    Read,
    Window,
    decode_readings,
    parse_json,
)
from services.ingest.domain.protocol import Protocol
from services.ingest.domain.sparkplug import NAMESPACE
from services.ingest.domain.topic_template import TopicTemplate, fill, names_in
from services.ingest.protocols.mqtt.packets import Properties
from services.ingest.protocols.mqtt.reading import read_by, with_said
from services.ingest.protocols.mqtt_client import FOR_EVER, MqttClient, connect, kept_session
from services.ingest.protocols.sparkplug_host import SparkplugHost
from services.ingest.usecases.connectors import Connector, Kind, Report
from services.ingest.usecases.downlinks import Send
from services.ingest.usecases.inlet import Inlet, at_most
from services.ingest.usecases.named_devices import is_an_id
from services.ingest.usecases.reception import Reception
from services.ingest.usecases.telemetry import Done

log = structlog.get_logger(__name__)

T = TypeVar("T")

MOST_UNSETTLED = 5_000
"""Messages taken and not yet durable. A broker mostly stops far below: it waits for us when so many
are not acknowledged as it allows (Mosquitto: `max_inflight_messages`, 20)."""
MOST_UNSETTLED_BYTES = 8 * 1024 * 1024
LARGEST_BIRTH = 1024 * 1024
"""Bytes of a Sparkplug message: a birth names all there is of an edge node."""
LONGEST_HEAD = 65_539
"""Bytes of a packet before its payload."""
MOST_KNOWN = 20_000
"""Devices, and names that are none's, remembered for one broker."""
LONGEST_TOPIC = 1_024
ANSWER_S = 10.0
"""How long the broker may take over each of its answers."""
UNKNOWN_S = 5.0
"""How long a name is believed to be nobody's."""


def _template(text: str) -> str:
    TopicTemplate.parse(text)
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/"):
        raise ValueError("write mqtt://host:port or mqtts://host:port")
    if "@" in parts.netloc:
        raise ValueError("name the user in `username`, and give the password as a secret")
    _ = parts.port  # raises ValueError if it is none
    return text


def _certificates(text: str) -> str:
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, TypeError) as error:
        raise ValueError("these are not certificates in PEM") from error
    return text


def _command_topic(text: str) -> str:
    TopicTemplate.parse(text)
    if "+" in text or "#" in text or text.startswith("$"):
        raise ValueError("commands go to a topic, which has no wildcard")
    return text


class CommandSettings(BaseModel):
    """Where the commands of a topic's devices go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: Annotated[str, AfterValidator(_command_topic)]
    """`plant/{line}/{device}/set`, with the topic's placeholders, and {name} for the command's name."""
    payload: Literal["command", "params"] = "command"
    """The whole command, `{"id", "name", "params", "expires_at"}`, or its parameters alone."""


class TopicSettings(BaseModel):
    """What to listen to, and whose telemetry it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: Annotated[str, AfterValidator(_template)]
    """`plant/{line}/{device}/{metric}`. With `{metric}` a message is one bare value, with
    `{channel}` its last word is telemetry, alerts, status, attributes or replies."""
    device: Annotated[str, Field(min_length=1, max_length=256)] = "{device}"
    """How the device is called: by its id, its name, or its name in `devices`."""
    channel: Channel = Channel.TELEMETRY
    """What the messages are about, where the topic has no `{channel}`."""
    qos: Literal[0, 1] = 1
    commands: CommandSettings | None = None
    """Absent: its devices are sent none. Their answers come in like all else, on a topic of `replies`."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "TopicSettings":
        known = TopicTemplate.parse(self.topic).names
        missing = names_in(self.device) - known
        if self.commands is not None:
            missing |= names_in(self.commands.topic) - known - {"name"}
        if missing:
            raise ValueError(f"the topic has no {{{min(missing)}}}")
        return self


class AutoRegister(BaseModel):
    """How a device that is heard of for the first time is registered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Annotated[str, Field(min_length=1, max_length=64)]
    most: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Devices that the tenant may have when another is registered so."""


class BridgeSettings(BaseModel):
    """Which broker, and what its topics mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(max_length=512), AfterValidator(_url)]
    """mqtt://host:1883 or mqtts://host:8883"""
    version: Literal["3.1.1", "5"] = "3.1.1"
    """Of MQTT. With 5 a message's content type is heard, and its user properties `unit` and `quality`."""
    username: Annotated[str, Field(max_length=256)] | None = None
    ca: Annotated[str, Field(max_length=65_536), AfterValidator(_certificates)] | None = None
    """Whom to trust with mqtts://: certificates in PEM. Absent: those the system trusts."""
    client_id: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] | None = None
    """By it the broker keeps what comes while we are away. Absent: one of this connector's own."""
    topics: Annotated[list[TopicSettings], Field(max_length=50)] = Field(default_factory=list)
    sparkplug: Annotated[list[str], Field(max_length=50)] = Field(default_factory=list)
    """Topic filters of Sparkplug B, such as `spBv1.0/#`. Its edge nodes are devices named
    `group/node`, theirs `group/node/device`."""
    devices: Annotated[dict[str, str], Field(max_length=10_000)] = Field(default_factory=dict)
    """Devices by what the site calls them: names or ids."""
    auto_register: AutoRegister | None = None
    """Absent: what an unknown device says is counted and let go."""

    @model_validator(mode="after")
    def _listens_to_something(self) -> "BridgeSettings":
        if not self.topics and not self.sparkplug:
            raise ValueError("name topics, or sparkplug filters")
        for topic in self.sparkplug:
            if not topic.startswith(f"{NAMESPACE}/") or "{" in topic:
                raise ValueError(f"a sparkplug filter begins with {NAMESPACE}/ and is no template")
            TopicTemplate.parse(topic)
        return self


def bridge_kind(most_bytes: int) -> Kind:
    """Return the kind of connector; of messages larger than `most_bytes` the beginning is kept."""

    async def run(connector: Connector, reception: Reception, report: Report) -> None:
        await Bridge(connector, reception, report, most_bytes).run()

    return Kind("mqtt", BridgeSettings, run, secrets=frozenset({"password"}))


class Bridge:
    """Brings in what one broker has, from one connection to its end."""

    def __init__(
        self, connector: Connector, reception: Reception, report: Report, most_bytes: int
    ) -> None:
        self._connector = connector
        self._settings: BridgeSettings = connector.settings
        self._reception = reception
        self._report = report
        self._most_bytes = most_bytes
        self._topics = [(TopicTemplate.parse(t.topic), t) for t in self._settings.topics]
        self._inlets: OrderedDict[str, Inlet] = OrderedDict()
        """By what the site calls the device."""
        self._strangers: OrderedDict[str, float] = OrderedDict()
        """Names that were nobody's when they were looked up, with the time until it is believed."""
        self._unsettled = 0
        self._unsettled_bytes = 0
        self._let_go = 0
        self._ways: dict[UUID, tuple[Source, Send]] = {}
        """Devices that commands can be sent to over this connection."""
        self._commands = [
            TopicTemplate.parse(topic.commands.topic)
            for topic in self._settings.topics
            if topic.commands is not None
        ]
        self._is_stale = asyncio.Event()
        """Something was taken that is never acknowledged on this connection."""
        self._client: MqttClient | None = None
        self._room = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many messages were read from the broker and are not taken yet."""
        return 0 if self._client is None else len(self._client.messages)

    async def run(self) -> None:
        """Connect and listen until the connection is lost. Raises what ended it."""
        intake, sources = self._reception.intake, self._reception.sources
        intake.on_room.append(self._room.set)
        sources.on_revoked.append(self._forget)
        try:
            await self._listen()
        except aiomqtt.MqttError as error:
            raise Unavailable(str(error.__cause__ or error) or "the connection was lost") from error
        finally:
            intake.on_room.remove(self._room.set)
            sources.on_revoked.remove(self._forget)
            for inlet in self._inlets.values():
                inlet.close()

    async def _listen(self) -> None:
        settings, connector = self._settings, self._connector
        parts = urlsplit(settings.url)
        host = parts.hostname or ""
        port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        tls = None
        if parts.scheme == "mqtts":
            tls = await asyncio.to_thread(ssl.create_default_context, cadata=settings.ca)
        address = await connector.destinations.address_of(host, port)
        own = await connect(address, port, tls, host)
        client = MqttClient(
            own,
            max(self._most_bytes, LARGEST_BIRTH) + LONGEST_HEAD,
            username=settings.username,
            password=connector.secret("password"),
            identifier=settings.client_id or f"iiot-{connector.id}",
            timeout=ANSWER_S,
            **kept_session(settings.version == "5", MOST_UNSETTLED),
        )
        try:
            async with client:
                self._client = client
                await self._subscribe(client)
                hearing = asyncio.create_task(self._hear(client))
                stale = asyncio.create_task(self._is_stale.wait())
                try:
                    await asyncio.wait({hearing, stale}, return_when=asyncio.FIRST_COMPLETED)
                    if hearing.done():
                        hearing.result()
                    raise Unavailable("a device was removed while its messages waited")
                finally:
                    for task in (hearing, stale):
                        task.cancel()
                    await asyncio.gather(hearing, stale, return_exceptions=True)
        finally:
            client.cut()

    async def _subscribe(self, client: MqttClient) -> None:
        """Subscribe to what is wanted now, and no more to what was. Says what the broker refuses."""
        wanted = [
            *((template.topic_filter, topic.qos) for template, topic in self._topics),
            *((topic, 1) for topic in self._settings.sparkplug),
        ]
        # The broker remembers for us, also what is wanted no longer.
        filters = sorted({topic for topic, _ in wanted})
        if gone := sorted(set(self._connector.memory.get("filters", ())) - set(filters)):
            await client.unsubscribe(gone)
        answers: Any = await client.subscribe(wanted)
        self._connector.remember({"filters": filters})
        refused, less = [], []
        for (topic, qos), answer in zip(wanted, answers, strict=False):
            granted: int = answer.value
            if granted > 2:
                refused.append(topic)
            elif granted < qos:
                less.append(topic)
        if len(refused) == len(wanted):
            raise Forbidden("the broker refuses all subscriptions")
        if refused:
            self._report(State.DEGRADED, f"the broker refuses to tell of {', '.join(refused)}")
        elif less:
            reason = f"the broker grants QoS 0 alone, which may lose messages: {', '.join(less)}"
            self._report(State.DEGRADED, reason)
        elif client.kept_s is not None and client.kept_s < FOR_EVER:
            reason = f"the broker keeps nothing for us when we were away for {client.kept_s} s"
            self._report(State.DEGRADED, reason)
        else:
            self._report(State.CONNECTED, "")

    async def _hear(self, client: MqttClient) -> None:
        async def transmit(_: Outgoing | None, topic: str, payload: bytes) -> Delivered:
            return await _publish(client, topic, payload, qos=0)

        def let_go(topic: str, payload: bytes, at: datetime, done: Done, what: str) -> None:
            self._let_it_go(topic, done, what)

        edge = SparkplugHost(
            self._reception, Protocol.MQTT_BRIDGE, self._inlet_of, transmit, let_go
        )
        # Beside what is heard: there may be thousands.
        reaching = asyncio.create_task(self._reach_mapped_devices(client))
        try:
            async for message in client.messages:
                await self._take(client, edge, message)
        finally:
            reaching.cancel()
            await asyncio.gather(reaching, return_exceptions=True)
            edge.leave("the bridge is down")
            for way in self._ways.values():
                self._reception.downlinks.detach(*way)
            self._ways.clear()

    # --- commands

    async def _reach_mapped_devices(self, client: MqttClient) -> None:
        """Open the ways to devices that are named in the settings: they may never say anything."""
        for topic in self._settings.topics:
            wanted = names_in(topic.commands.topic) - {"name"} if topic.commands else set()
            if topic.commands is None or topic.device != "{device}" or wanted - {"device"}:
                continue
            for name in self._settings.devices:
                inlet = await self._inlet_of_mapped(name)
                if inlet is not None:
                    self._open_way(client, topic, {"device": name}, inlet)

    async def _inlet_of_mapped(self, name: str) -> Inlet | None:
        while True:
            try:
                return await self._inlet_of(name)
            except Exception as error:
                if not is_transient(error):
                    log.exception("a bridge's device cannot be reached", device=name)
                    return None
                await asyncio.sleep(UNKNOWN_S)

    def _open_way(
        self,
        client: MqttClient,
        topic: TopicSettings,
        values: Mapping[str, str],
        inlet: Inlet,
    ) -> None:
        """Let commands reach a device, by the topic that its own words came on."""
        to = topic.commands
        if to is None or inlet.source.device_id in self._ways:
            return

        async def send(outgoing: Outgoing) -> Delivered:
            filled = fill(to.topic, {**values, "name": outgoing.name})
            if not _is_of(to.topic, filled):
                raise Invalid(f"a command's name that is part of a topic is no {outgoing.name!r}")
            whole = to.payload == "command"
            payload = to_json(outgoing) if whole else msgspec.json.encode(outgoing.params)
            return await _publish(client, filled, payload, qos=1)

        self._ways[inlet.source.device_id] = (inlet.source, send)
        self._reception.downlinks.attach(inlet.source, send)

    async def _take(
        self, client: MqttClient, edge: SparkplugHost, message: aiomqtt.Message
    ) -> None:
        while (
            self._reception.intake.is_full
            or self._unsettled >= MOST_UNSETTLED
            or self._unsettled_bytes >= MOST_UNSETTLED_BYTES
        ):
            self._room.clear()
            await self._room.wait()
        done = self._settlement(client, message)
        topic, now = str(message.topic), self._reception.clock.now()
        if self._settings.sparkplug and topic.startswith(f"{NAMESPACE}/"):
            await edge.take(topic, _bytes(message.payload), now, done, LARGEST_BIRTH)
            return
        read = self._read(topic)
        if read is None and any(template.match(topic) is not None for template in self._commands):
            done()  # a command, which the broker tells us of too where a filter is wide
            return
        if read is None:
            self._let_it_go(topic, done, "of topics that fit no template")
            return
        settings, values, channel = read
        inlet = await self._inlet_of(fill(settings.device, values))
        if inlet is None:
            self._let_it_go(topic, done, "of unknown devices")
            return
        self._open_way(client, settings, values, inlet)
        self._reception.met(inlet.source, Protocol.MQTT_BRIDGE)
        reader = self._reader(inlet.source, values.get("metric"), _properties_of(message))
        inlet.take(channel, _bytes(message.payload), now, done, at_most(self._most_bytes, reader))

    def _read(self, topic: str) -> tuple[TopicSettings, Mapping[str, str], Channel] | None:
        """Return what a topic says, by the first template that it fits; None if it fits none."""
        for template, settings in self._topics:
            values = template.match(topic)
            if values is None:
                continue
            try:
                return settings, values, Channel(values.get("channel", settings.channel))
            except ValueError:
                continue
        return None

    def _reader(self, source: Source, metric: str | None, properties: Properties | None) -> Read:
        def read(payload: bytes, received_at: datetime, window: Window) -> Decoded:
            written, reader = read_by(source, properties, payload)
            self._reception.met(source, Protocol.MQTT_BRIDGE, written)
            return reader(payload, received_at, window)

        return read if metric is None else with_said(_reader_of(metric), properties)

    def _let_it_go(self, topic: str, done: Done, what: str) -> None:
        """Acknowledge what is no device's: there is nobody in whose quarantine it could lie."""
        self._let_go += 1
        if self._let_go & (self._let_go - 1) == 0:
            # The 1st, 2nd, 4th …: a tenant's broker must not write our log full.
            log.warning("the bridge let go", count=self._let_go, why=what, topic=topic)
        self._report(
            State.DEGRADED,
            f"{self._let_go} messages were let go: {what}; the last on {topic[:200]}",
        )
        done()

    async def _inlet_of(self, name: str) -> Inlet | None:
        inlet = self._inlets.get(name)
        if inlet is not None:
            return inlet
        now = asyncio.get_running_loop().time()
        if self._strangers.get(name, 0.0) > now:
            return None
        source = await self._source_of(self._settings.devices.get(name, name))
        if name in self._inlets:
            # Meanwhile it was looked up for the other of the two who ask: its messages go one way.
            return self._inlets[name]
        if source is None:
            _remember(self._strangers, name, now + UNKNOWN_S)
            return None
        inlet = Inlet(self._reception, source, on_let_go=self._lose)
        for forgotten in _remember(self._inlets, name, inlet):
            forgotten.close()
        return inlet

    async def _source_of(self, name: str) -> Source | None:
        devices, registering = self._connector.devices, self._settings.auto_register
        source = await devices.source(name)
        if source is not None or registering is None or not is_a_name(name) or is_an_id(name):
            return source
        try:
            await devices.register(
                name, registering.type, most=registering.most, at=self._reception.clock.now()
            )
        except Conflict as full:
            log.warning("the bridge registers no more devices", reason=full.detail)
            return None
        return await devices.source(name)

    def _settlement(self, client: MqttClient, message: aiomqtt.Message) -> Done:
        size = len(_bytes(message.payload))
        self._unsettled += 1
        self._unsettled_bytes += size

        def settle() -> None:
            self._unsettled -= 1
            self._unsettled_bytes -= size
            self._room.set()
            client.acknowledge(message)

        return settle

    def _lose(self, done: Done) -> None:
        """Begin anew: the broker sends again what is never acknowledged on this connection."""
        self._is_stale.set()

    def _forget(self, device_id: UUID, _: str) -> None:
        for name, inlet in list(self._inlets.items()):
            if inlet.source.device_id == device_id:
                inlet.close()
                del self._inlets[name]
        way = self._ways.pop(device_id, None)
        if way is not None:
            self._reception.downlinks.detach(*way)


async def _publish(client: MqttClient, topic: str, payload: bytes, *, qos: int) -> Delivered:
    """Publish a command. The broker has it then; of the device nobody knows."""
    try:
        await client.publish(topic, payload, qos=qos)
    except aiomqtt.MqttError as error:
        raise Unavailable("the broker does not take it now") from error
    return Delivered.SENT


def _is_of(template: str, topic: str) -> bool:
    """Whether a filled-in topic has the levels of its template, and no wildcard among them."""
    return (
        topic.count("/") == template.count("/")
        and not set(topic) & set("+#\0")
        and len(topic) <= LONGEST_TOPIC
    )


def _properties_of(message: aiomqtt.Message) -> Properties | None:
    """Return what of a message's properties is heard; None if it came by MQTT 3.1.1."""
    said = message.properties
    if said is None:
        return None
    # What was not sent is no attribute at all.
    return Properties(
        content_type=getattr(said, "ContentType", None),
        user=tuple(getattr(said, "UserProperty", ())),
    )


def _bytes(payload: object) -> bytes:
    """Return a payload as it was sent; aiomqtt hands bytes on."""
    return bytes(payload) if isinstance(payload, bytes | bytearray) else b""


def _remember(known: OrderedDict[str, T], name: str, value: T) -> list[T]:
    """Remember something under a name; return what is forgotten for it, oldest first."""
    known[name] = value
    known.move_to_end(name)
    return [known.popitem(last=False)[1] for _ in range(len(known) - MOST_KNOWN)]


def _reader_of(metric: str) -> Read:
    """Return a reader of messages that are the one value of a metric."""

    def read(payload: bytes, received_at: datetime, window: Window) -> Decoded:
        return decode_readings([_reading_of(metric, payload)], received_at, window)

    return read


def _reading_of(metric: str, payload: bytes) -> dict[str, Any]:
    """Read the one value of a topic that names its metric.

    It is a JSON number, bool or string, `{"value": …, "ts": …}`, or a plain word: then it is text.
    Raises Malformed or Invalid if it is none of these.
    """
    try:
        value = parse_json(payload)
    except Malformed:
        try:
            value = payload.decode()
        except UnicodeDecodeError:
            raise Malformed("neither JSON nor text") from None
        if not value or value.lstrip()[:1] in '{["':
            raise
    if isinstance(value, dict):
        if "value" not in value or value.keys() - {"value", "ts"}:
            raise Invalid('of one metric is taken a value, or {"value": …, "ts": …}')
        return {"values": {metric: value["value"]}} | (
            {"ts": value["ts"]} if value.get("ts") is not None else {}
        )
    return {"values": {metric: value}}
