"""Modbus TCP: a device that speaks when it is asked, so it is asked in turn.

All registers of a device are read in as few requests as they fit in, every so often; the time of a
value is that of its reading. What cannot be read is stored as a point of bad quality, so that a
sensor that is gone is no flat line. A round that is not durable yet holds up the next one.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from pydantic import AfterValidator, Field, model_validator

from libs.common.errors import AppError, Invalid, Unavailable
from libs.common.historian.point import Kind, Quality
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.device import Source
from services.ingest.domain.payload import NO_VALUE, Decoded, Point, as_us
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.protocols.connectors import (
    ConnectorSettings,
    MetricSettings,
    each_metric_once,
    until_devices_change,
)
from services.ingest.protocols.health import Health
from services.ingest.protocols.modbus.registers import (
    Block,
    Register,
    Table,
    Type,
    blocks,
    value_of,
    words_for,
    words_of,
)
from services.ingest.protocols.native import bring
from services.ingest.usecases.connectors import Connector, Report
from services.ingest.usecases.connectors import Kind as ConnectorKind
from services.ingest.usecases.downlinks import Send
from services.ingest.usecases.inlet import Inlet, nothing
from services.ingest.usecases.reception import Reception

MOST_REGISTERS = 5_000
FAILURES = 3
"""Rounds in which nothing at all was answered, after which the connection is given up."""
MOST_HEARD_BYTES = 4_096
"""After one question. An answer has 260 at most; beyond that it is no device that talks."""
_FUNCTIONS = {Table.COIL: 1, Table.DISCRETE: 2, Table.HOLDING: 3, Table.INPUT: 4}


EXCEPTIONS = {
    1: "it does not know the function",
    2: "there is no such address",
    3: "it does not take the value",
    4: "it failed",
    5: "it takes its time",
    6: "it is busy",
    8: "its memory is damaged",
    10: "the gateway has no way to the unit",
    11: "the unit behind the gateway does not answer",
}
"""What a device says when it refuses."""
_LOST = "the connection was lost"


class RegisterSettings(MetricSettings):
    """A value of the device's, and the metric that it is."""

    kind: Table = Table.HOLDING
    address: Annotated[int, Field(ge=0, le=65_535)]
    """From 0, as it goes over the wire: 40001 of a manual is holding register 0."""
    type: Type = Type.UINT16
    word_order: Literal["big", "little"] = "big"
    byte_order: Literal["big", "little"] = "big"
    length: Annotated[int, Field(ge=1, le=100)] = 1
    """Of a string, in registers of two bytes."""
    bit: Annotated[int, Field(ge=0, le=15)] | None = None
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    unit: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    is_writable: bool = False
    """Whether the command `write` may set it."""

    @model_validator(mode="after")
    def _can_be(self) -> "RegisterSettings":
        if self.kind.is_bits and self.type is not Type.BOOL:
            raise ValueError(f"a {self.kind} is a bool")
        if self.bit is not None and (self.kind.is_bits or self.type is not Type.BOOL):
            raise ValueError("`bit` is of a bool in a word")
        if self.scale == 0:
            raise ValueError("scale is not 0")
        if self.is_writable and not self.kind.is_writable:
            raise ValueError(f"a register of kind {self.kind} cannot be written")
        if self.register_.end > 65_536:
            raise ValueError("it reaches beyond address 65535")
        return self

    @property
    def register_(self) -> Register:
        """Where it lies."""
        return Register(
            self.kind,
            self.address,
            self.type,
            self.word_order,
            self.byte_order,
            self.length,
            self.bit,
            self.scale,
            self.offset,
        )


class ModbusSettings(ConnectorSettings):
    """Which device, how often it is asked, and what for."""

    host: Annotated[str, Field(min_length=1, max_length=253)]
    port: Annotated[int, Field(ge=1, le=65_535)] = 502
    unit: Annotated[int, Field(ge=0, le=255)] = 1
    """Which of the devices behind a gateway; 1 or 255 for one that stands alone."""
    poll_ms: Annotated[int, Field(ge=100, le=86_400_000)] = 1_000
    timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = 3_000
    registers: Annotated[
        list[RegisterSettings],
        Field(min_length=1, max_length=MOST_REGISTERS),
        AfterValidator(each_metric_once),
    ]


def modbus_kind() -> ConnectorKind:
    """Return the kind of connector."""

    async def run(connector: Connector, reception: Reception, report: Report) -> None:
        await Poller(connector, reception, report).run()

    return ConnectorKind("modbus", ModbusSettings, run)


@dataclass(slots=True, eq=False)
class _Device:
    source: Source
    inlet: Inlet
    send: Send
    values: list[tuple[RegisterSettings, Register]] = field(default_factory=list)


class _Asked(NamedTuple):
    block: Block
    values: list[tuple[_Device, RegisterSettings, Register]]
    """What is in it."""


class Poller:
    """Asks one device in turn, from one connection to its end."""

    def __init__(self, connector: Connector, reception: Reception, report: Report) -> None:
        self._connector = connector
        self._settings: ModbusSettings = connector.settings
        self._reception = reception
        self._health = Health(report)
        self._devices: dict[str, _Device] = {}
        self._unknown: set[str] = set()
        self._turn = asyncio.Lock()
        """Requests go one at a time: many devices mix answers up."""
        self._heard = 0
        """Bytes since the last question."""
        self._is_answered = False
        """Whether it answered anything in this round, if only that it will not."""

    async def run(self) -> None:
        """Connect and ask until the connection is lost. Raises what ended it."""
        from pymodbus.client import AsyncModbusTcpClient

        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        settings = self._settings
        address = await self._connector.destinations.address_of(settings.host, settings.port)
        client = AsyncModbusTcpClient(
            address,
            port=settings.port,
            timeout=settings.timeout_ms / 1_000,
            retries=0,
            reconnect_delay=0,
        )
        self._bound(client)
        try:
            if not await client.connect():
                raise Unavailable("it does not answer")
            await until_devices_change(
                self._connector,
                self._reception.sources,
                self._poll(client),
                self._devices,
                self._unknown,
            )
        finally:
            for device in self._devices.values():
                self._reception.downlinks.detach(device.source, device.send)
                reason = "the connector is not connected"
                self._reception.presence.went(device.source, device, reason)
                device.inlet.close()
            client.close()

    def _bound(self, client: Any) -> None:
        """Have what talks on and on cut off: it would hold the loop that all others share."""
        protocol = client.ctx
        receive = protocol.data_received

        def received(data: bytes) -> None:
            self._heard += len(data)
            if self._heard <= MOST_HEARD_BYTES:
                receive(data)
            elif protocol.transport is not None:
                protocol.transport.abort()

        protocol.data_received = received

    async def _find_devices(self, client: Any) -> None:
        for settings in self._settings.registers:
            device = self._devices.get(settings.device)
            if device is None:
                if settings.device in self._unknown:
                    continue
                source = await self._connector.devices.source(settings.device)
                if source is None:
                    self._unknown.add(settings.device)
                    self._health.note(settings.device, "there is no such device")
                    continue
                device = _Device(source, Inlet(self._reception, source), nothing)  # type: ignore[arg-type]  # set in the next line
                device.send = self._sender(client, device)
                self._devices[settings.device] = device
            device.values.append((settings, settings.register_))

    def _welcome_devices(self) -> None:
        """Something answers: its devices are there, and may be sent commands."""
        for device in self._devices.values():
            name = self._connector.name
            reason = f"connected by the connector {name!r}"
            self._reception.presence.came(device.source, device, reason)
            if any(settings.is_writable for settings, _ in device.values):
                self._reception.downlinks.attach(device.source, device.send)

    def _asked(self) -> list[_Asked]:
        """Return the requests of a round, each with what is in it."""
        wanted: dict[Register, list[tuple[_Device, RegisterSettings, Register]]] = {}
        for device in self._devices.values():
            for settings, register in device.values:
                wanted.setdefault(register, []).append((device, settings, register))
        return [
            _Asked(block, [value for register in block.registers for value in wanted[register]])
            for block in blocks(wanted)
        ]

    async def _poll(self, client: Any) -> None:
        await self._find_devices(client)
        asked = self._asked()
        loop, period_s = asyncio.get_running_loop(), self._settings.poll_ms / 1_000
        due, failures, is_there = loop.time(), 0, False
        while True:
            self._is_answered = not asked
            fault = await self._read_all(client, asked)
            failures = 0 if self._is_answered else failures + 1
            if self._is_answered and not is_there:
                is_there = True
                self._welcome_devices()
                self._health.connected()
            if not client.connected or failures >= FAILURES:
                raise Unavailable(fault or _LOST)
            # A device that is slower than its round is asked at its own pace, not in a heap.
            due = max(due + period_s, loop.time())
            await asyncio.sleep(due - loop.time())

    async def _read_all(self, client: Any, asked: Sequence[_Asked]) -> str | None:
        """Read each block, hand on what it holds; return why the first that could not be read was not."""
        first: str | None = None
        taken: dict[_Device, Decoded] = {}
        for block, values in asked:
            words, fault = await self._read(client, block)
            if fault is None:
                self._health.forget(str(block))
            else:
                self._health.note(str(block), fault)
                first = first or fault
            now = as_us(self._reception.clock.now())
            for device, settings, register in values:
                decoded = taken.setdefault(device, Decoded(now))
                _add(decoded, settings, register, block, words, now)
        await self._bring(taken, self._reception.clock.now())
        return first

    async def _read(self, client: Any, block: Block) -> tuple[list[int] | None, str | None]:
        ask = {
            Table.COIL: client.read_coils,
            Table.DISCRETE: client.read_discrete_inputs,
            Table.HOLDING: client.read_holding_registers,
            Table.INPUT: client.read_input_registers,
        }[block.table]
        try:
            answer = await self._ask(
                client, ask, _FUNCTIONS[block.table], block.address, count=block.count
            )
        except AppError as error:
            return None, error.detail
        held = answer.bits if block.table.is_bits else answer.registers
        if len(held) < block.count:
            return None, f"{len(held)} values, where {block.count} were asked for"
        return list(held), None

    async def _ask(
        self, client: Any, ask: Callable[..., Any], function: int, *about: Any, **more: Any
    ) -> Any:
        """Return the answer to a question. Raises Unavailable without one, Invalid if it is no."""
        from pymodbus.exceptions import ModbusException

        async with self._turn:
            if not client.connected:
                # The library would connect anew, in the middle of a round.
                raise Unavailable(_LOST)
            self._heard = 0
            try:
                answer = await ask(*about, device_id=self._settings.unit, **more)
            except ModbusException as error:
                raise Unavailable(self._silence()) from error
        self._is_answered = True
        if answer.isError():
            code = answer.exception_code
            raise Invalid(
                f"exception {code}, {EXCEPTIONS.get(code, 'which no device should give')}"
            )
        if answer.function_code != function:
            raise Invalid(f"an answer to function {answer.function_code}, not to {function}")
        return answer

    def _silence(self) -> str:
        if self._heard > MOST_HEARD_BYTES:
            return "it sends on and on what nobody asked for"
        if self._heard:
            return "what it sends is no answer: is it Modbus TCP, and of this unit?"
        return f"no answer within {self._settings.timeout_ms} ms"

    async def _bring(self, taken: dict[_Device, Decoded], now: datetime) -> None:
        for device in taken:
            self._reception.met(device.source, Protocol.MODBUS, PayloadFormat.NATIVE)
        await bring({device.inlet: decoded for device, decoded in taken.items()}, now)

    # --- commands

    def _sender(self, client: Any, device: _Device) -> Send:
        async def send(outgoing: Outgoing) -> Delivered:
            if outgoing.name != "write":
                raise Invalid("the command of a Modbus device is `write`")
            metric = outgoing.params.get("metric")
            found = [
                register
                for settings, register in device.values
                if settings.metric == metric and settings.is_writable
            ]
            if not found or "value" not in outgoing.params:
                raise Invalid("write takes {metric, value}, of a register that is writable")
            await self._write(client, found[0], outgoing.params["value"])
            reply = msgspec.json.encode({"id": str(outgoing.id), "status": "succeeded"})
            device.inlet.take(Channel.REPLIES, reply, self._reception.clock.now(), nothing)
            return Delivered.ACKNOWLEDGED

        return send

    async def _write(self, client: Any, register: Register, value: object) -> None:
        try:
            words = words_for(register, value)
        except ValueError as error:
            raise Invalid(str(error)) from error
        if register.table is Table.COIL:
            await self._ask(client, client.write_coil, 5, register.address, bool(words[0]))
        else:
            await self._ask(client, client.write_registers, 16, register.address, words)


def _add(
    decoded: Decoded,
    settings: RegisterSettings,
    register: Register,
    block: Block,
    words: list[int] | None,
    now: int,
) -> None:
    """Add a register's value; a bad point if it could not be read."""
    metric = settings.metric
    if words is not None:
        try:
            value = value_of(register, words_of(register, block, words))
        except ValueError:
            pass
        else:
            decoded.add(0, metric, now, value, unit=settings.unit)
            return
    kind = _kind_of(register.type)
    nothing_there = "" if kind is Kind.TEXT else NO_VALUE
    decoded.points.append(Point(metric, now, kind, nothing_there, Quality.BAD, settings.unit))


def _kind_of(held: Type) -> Kind:
    if held is Type.BOOL:
        return Kind.BOOL
    return Kind.TEXT if held is Type.STRING else Kind.NUMBER
