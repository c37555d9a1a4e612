"""What a device says beside its own telemetry and reports: for others, or to ask something."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from libs.common.bus.outcome import is_transient
from libs.common.db.transactions import Transactions
from libs.common.errors import AppError, Invalid
from services.ingest.domain.attribute import Scope
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.device import Source
from services.ingest.domain.gateway import NotAGateway, NotBehind
from services.ingest.domain.payload import as_us, parse_json
from services.ingest.protocols.mqtt.actions import SaidAside
from services.ingest.protocols.mqtt.packets import ReasonCode
from services.ingest.protocols.mqtt.topics import Aside, Topics
from services.ingest.store.store import IngestStore
from services.ingest.usecases.gateways import Behind
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.reception import Reception
from services.ingest.usecases.telemetry import Done

log = structlog.get_logger(__name__)

MOST_UNSETTLED = 1_000
"""Messages that are not durable yet, beyond which the device is not read."""
MOST_UNSETTLED_BYTES = 1024 * 1024
BELIEVED_S = 5.0
"""How long it is believed that a gateway may not speak for a device."""
MOST_REFUSED = 1_000
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Desk:
    """What all connections' asides need of the platform."""

    reception: Reception
    transactions: Transactions[IngestStore]
    devices_per_tenant: int
    largest: int
    """Bytes of a message."""
    behind: "dict[UUID, Asides]" = field(default_factory=dict)
    """Devices without a connection of their own, and who speaks for them here."""


class Line(Protocol):
    """The connection, as far as what is said aside needs it."""

    @property
    def topics(self) -> Topics:
        """The device's topics."""
        ...

    def tell(self, topic: bytes, payload: bytes) -> None:
        """Tell the device something with QoS 0, if it listens."""
        ...

    async def transmit(self, outgoing: Outgoing, topic: bytes, payload: bytes) -> Delivered:
        """Send a command on a topic; raises as a way down does."""
        ...

    def end(self, reason: str, code: ReasonCode = ...) -> None:
        """End the connection."""
        ...

    def settle_reading(self) -> None:
        """Read on, if nothing speaks against it."""
        ...


class Party(Protocol):
    """Somebody who speaks for others over the connection."""

    async def take(self, said: SaidAside, done: Done) -> None:
        """Take what was said; `done` is called once it is durable. Raises AppError if it is not taken."""
        ...

    def leave(self, reason: str) -> None:
        """Say that the connection is over, or that all must be asked anew."""
        ...

    def attributes_changed(self, device_id: UUID, values: dict[str, Any], gone: list[str]) -> None:
        """Tell a device behind it what was set for it."""
        ...


class Asides:
    """One connection's, in the order they came. Who speaks for others must be a gateway."""

    def __init__(
        self,
        desk: Desk,
        own: Inlet,
        line: Line,
        make: "Mapping[Aside, Callable[[Asides], Party]]",
    ) -> None:
        """`make` says who takes what is said for others."""
        self.desk = desk
        self._make = make
        self.own = own
        self.line = line
        self._behind = Behind(
            own.source, desk.reception.sources, desk.transactions, desk.devices_per_tenant
        )
        self._inlets: dict[UUID, Inlet] = {}
        """Of the devices behind it, one each, so that their messages keep their order."""
        self._called: dict[str, Inlet] = {}
        """The same by what it calls them, as far as that was looked up."""
        self._waiting_inlets = 0
        self._refused: OrderedDict[str, tuple[NotBehind, float]] = OrderedDict()
        self._parties: dict[Aside, Party] = {}
        self._waiting: deque[tuple[SaidAside, Done]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._unsettled = 0
        self._unsettled_bytes = 0
        self._over: str | None = None
        """Why the connection is over, when it is."""
        self._changes = 0
        """How often it was changed what the device may do for others."""
        self._changes_seen = 0

    @property
    def source(self) -> Source:
        """Whose connection it is."""
        return self.own.source

    @property
    def is_waiting(self) -> bool:
        """Whether no more should be read from the device for now."""
        return (
            self._unsettled >= MOST_UNSETTLED
            or self._unsettled_bytes >= MOST_UNSETTLED_BYTES
            or self._waiting_inlets > 0
        )

    def take(self, said: SaidAside, done: Done) -> None:
        """Take what was said; `done` is called once it is durable."""
        size = len(said.payload)
        self._unsettled += 1
        self._unsettled_bytes += size

        def settled() -> None:
            was_waiting = self._unsettled >= MOST_UNSETTLED or self._unsettled_bytes >= (
                MOST_UNSETTLED_BYTES
            )
            self._unsettled -= 1
            self._unsettled_bytes -= size
            done()
            if was_waiting:
                self.line.settle_reading()

        self._waiting.append((said, settled))
        self._work()

    def close(self, reason: str) -> None:
        """Say that the connection is over. What it had brought by then is still taken."""
        self._over = reason
        for inlet in self._inlets.values():
            inlet.close()
        if self._worker is None:
            self._leave(reason)

    def forget(self, device_id: UUID) -> None:
        """Forget a device behind it that may not go on."""
        self.desk.behind.pop(device_id, None)
        inlet = self._inlets.pop(device_id, None)
        if inlet is not None:
            inlet.close()
            self._called = {name: at for name, at in self._called.items() if at is not inlet}

    def look_again(self) -> None:
        """Ask anew what the device may do for others, once what it said last is taken: that has changed."""
        self._changes += 1
        if self._parties:
            self._work()

    async def inlet_of(self, name: str, registered_as: str, at: datetime) -> Inlet:
        """Return where a device behind it comes in. Raises NotBehind, NotAGateway, Unavailable."""
        inlet = self._called.get(name)
        if inlet is not None:
            return inlet
        now = asyncio.get_running_loop().time()
        refused, until = self._refused.get(name, (None, 0.0))
        if refused is not None and now < until:
            raise refused
        source = await self._look_up(name, registered_as, at)
        inlet = self._inlets.get(source.device_id)
        if inlet is None or inlet.source is not source:
            self.forget(source.device_id)
            inlet = self._inlets[source.device_id] = Inlet(
                self.desk.reception,
                source,
                on_waiting=self._inlet_waits,
                on_settled=self._inlet_settled,
                # Not acknowledged, it comes again with the next connection, and is the gateway's own then.
                on_let_go=lambda done: self.line.end("a device behind it was removed"),
            )
            if self._over is not None:
                inlet.close()
        self._called[name] = inlet
        self.desk.behind[source.device_id] = self
        return inlet

    async def _look_up(self, name: str, registered_as: str, at: datetime) -> Source:
        """Return who is called so. What was found out while that was changed may hold no more."""
        while True:
            changes = self._changes
            try:
                source = await self._behind.source(name, registered_as, at)
            except NotBehind as error:
                if changes == self._changes:
                    self._refused[name] = (error, asyncio.get_running_loop().time() + BELIEVED_S)
                    if len(self._refused) > MOST_REFUSED:
                        self._refused.popitem(last=False)
                    raise
            else:
                if changes == self._changes:
                    return source

    def _inlet_waits(self) -> None:
        self._waiting_inlets += 1

    def _inlet_settled(self) -> None:
        self._waiting_inlets -= 1
        self.line.settle_reading()

    def refuse(self, error: AppError, payload: bytes, at: datetime, done: Done) -> None:
        """Put what is no device's into the quarantine of the one who said it."""
        self.desk.reception.intake.refuse_message(
            self.source, error.slug, error.detail, payload, done, received_at=at
        )

    def attributes_changed(self, device_id: UUID, values: dict[str, Any], gone: list[str]) -> None:
        """Tell a device behind it what was set for it."""
        for party in self._parties.values():
            party.attributes_changed(device_id, values, gone)

    # --- one after the other

    def _work(self) -> None:
        if self._worker is None:
            self._worker = self.desk.reception.spawn(self._work_off())

    async def _work_off(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._waiting or self._changes_seen != self._changes:
            if self._changes_seen != self._changes:
                await self._begin_anew()
                continue
            said, done = self._waiting[0]
            try:
                await self._deal(said, done)
            except NotAGateway as error:
                self._turn_away(error)
                break
            except Exception as error:
                if is_transient(error):
                    if self._over is not None:
                        self._waiting.clear()
                        break
                    await asyncio.sleep(pause_s)
                    pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                    continue
                refused = error if isinstance(error, AppError) else None
                if refused is None:
                    # Ours to find, not the device's to suffer: kept with its reason.
                    log.exception("a message failed", device=str(self.source.device_id))
                    refused = AppError("the platform failed to take it")
                self.refuse(refused, said.payload, said.received_at, done)
            pause_s = FIRST_PAUSE_S
            self._waiting.popleft()
        self._worker = None
        if self._over is not None:
            self._leave(self._over)

    async def _deal(self, said: SaidAside, done: Done) -> None:
        match said.aside:
            case Aside.ATTRIBUTES:
                await self._answer_attributes(said)
                done()
            case Aside.RPC:
                self._answer_call(said)
                done()
            case _:
                await (await self._party(said.aside)).take(said, done)

    async def _party(self, aside: Aside) -> Party:
        found = self._parties.get(aside)
        if found is None:
            await self._behind.check()
            found = self._parties[aside] = self._make[aside](self)
        return found

    async def _begin_anew(self) -> None:
        """Let go what held before the change; end the connection if the device is no gateway any more."""
        self._changes_seen = self._changes
        if not self._parties:
            return
        self._leave("its gateway was changed")
        try:
            await self._behind.check()
        except NotAGateway as error:
            self._turn_away(error)
        except Exception as error:
            # Its next message asks again.
            if not is_transient(error):
                log.exception("a gateway's right failed", device=str(self.source.device_id))

    def _turn_away(self, error: NotAGateway) -> None:
        self._waiting.clear()
        self.line.end(error.detail, ReasonCode.NOT_AUTHORIZED)

    def _leave(self, reason: str) -> None:
        for party in self._parties.values():
            party.leave(reason)
        self._parties.clear()
        self._called.clear()
        self._refused.clear()
        for device_id, inlet in list(self._inlets.items()):
            if self._over is None and inlet.is_waiting:
                continue  # what waits in it is taken before what comes next
            del self._inlets[device_id]
            if self.desk.behind.get(device_id) is self:
                del self.desk.behind[device_id]

    # --- questions

    async def _answer_attributes(self, said: SaidAside) -> None:
        """Answer `{"sharedKeys": "a,b", "clientKeys": "c"}`; without any keys, with all there is."""
        asked = parse_json(said.payload) if said.payload.strip() else {}
        if not isinstance(asked, dict) or not all(isinstance(v, str) for v in asked.values()):
            raise Invalid('attributes are asked for as {"sharedKeys": "a,b", "clientKeys": "c"}')
        wanted = {
            scope: asked.get(f"{scope}Keys", None if not asked else "")
            for scope in (Scope.CLIENT, Scope.SHARED)
        }
        scopes = [scope for scope, keys in wanted.items() if keys != ""]
        answer = {}
        for scope, found in (
            await self.attributes_of(self.source, scopes, said.received_at)
        ).items():
            keys = wanted[scope]
            names = found.keys() if keys is None else keys.split(",")
            answer[scope.value] = {name: found[name] for name in names if name in found}
        topics = self.line.topics
        number = topics.number_in(said.topic.encode(), b"attributes/request/") or b""
        self.line.tell(topics.attributes + b"/response/" + number, _encode(answer))

    async def attributes_of(
        self, source: Source, scopes: Sequence[Scope], at: datetime
    ) -> dict[Scope, dict[str, Any]]:
        """Return a device's attributes of these scopes. Raises TooManyReports if it asks too often."""
        self.desk.reception.reports.take_question(self.source, at)
        async with self.desk.transactions.begin(source.tenant_id) as store:
            return {scope: await store.attributes.get(source.device_id, scope) for scope in scopes}

    def _answer_call(self, said: SaidAside) -> None:
        """Answer a call to the server: for its time, as there is nothing else that one could call."""
        called = parse_json(said.payload)
        method = called.get("method") if isinstance(called, dict) else None
        answer: object = {"error": "the server answers getCurrentTime and no other method"}
        if method == "getCurrentTime":
            answer = as_us(self.desk.reception.clock.now()) // 1000
        topics = self.line.topics
        number = topics.number_in(said.topic.encode(), b"rpc/request/") or b""
        self.line.tell(topics.prefix + b"rpc/response/" + number, _encode(answer))
