"""Connections out: what tenants set up, and the process that runs each of them.

A kind of connector (another broker, an OPC UA server, a Modbus device) is a model of its settings
and a function that runs until it is cancelled. One process at a time runs a connector: it holds a
lease by PostgreSQL's clock, and when that ends another takes it. What a run raises is reported and
tried again; a change of the connector starts it anew.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import structlog
from pydantic import BaseModel, SecretStr, ValidationError

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.destinations import Destinations
from libs.common.errors import (
    AppError,
    Conflict,
    FieldError,
    Invalid,
    PreconditionFailed,
    Unavailable,
    invalid,
)
from libs.common.events.ingest import ConnectorChanged
from libs.common.jobs import Ticker
from libs.common.sealing import Sealing, Unsealable
from libs.common.tasks import end, is_own_cancellation
from services.ingest.domain.connector import Definition, Held, State
from services.ingest.store.connectors import ConnectorKey, ConnectorLeases, Note
from services.ingest.store.store import IngestStore
from services.ingest.usecases.named_devices import NamedDevices
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

MOST = 50
"""Connectors of a tenant."""
LONGEST_REASON = 500
LONGEST_SECRET = 16_384
MOST_MEMORY_BYTES = 65_536
"""Of what a run remembers; it is written again and again."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
RENEWALS = 4
"""How often a lease is renewed while it lasts."""
NOTED_EVERY = timedelta(seconds=1)
BROWSE_S = 20.0
_NO_WAY_THERE = (
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EADDRNOTAVAIL,
)

Report = Callable[[State, str], None]
"""Says how a run does, with the reason, which the tenant reads: no secret, nothing of ours."""


@dataclass(frozen=True, slots=True)
class Connector:
    """A connector as its run gets it: settings checked, secrets opened."""

    id: UUID
    tenant_id: UUID
    name: str
    kind: str
    settings: Any
    """An instance of the kind's model."""
    secrets: Mapping[str, SecretStr]
    version: int
    devices: NamedDevices
    """The tenant's devices, by id or name."""
    destinations: Destinations
    """Which addresses it may connect to: ask before each connection."""
    created_at: datetime | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)
    """What an earlier run remembered."""
    remember: Callable[[dict[str, Any]], None] = lambda memory: None
    """Keeps something (JSON) for later runs; written with the next note, within a second or so.
    What is larger than MOST_MEMORY_BYTES is not kept, and what was kept before stays."""

    def secret(self, name: str) -> str | None:
        """Return a secret's value, None if it was not set."""
        held = self.secrets.get(name)
        return None if held is None else held.get_secret_value()


Run = Callable[[Connector, Reception, Report], Awaitable[None]]
"""Connects, and brings what it hears to the reception, until cancelled.

What it raises is reported and tried again, with 0.5 to 10 s between attempts; a run that reported
`connected` begins with the short pause again. An AppError's detail is shown to the tenant.
"""

Browse = Callable[[Connector, str | None], Awaitable[list[dict[str, Any]]]]
"""Lists what lies below a node of the other side (None: its root), over a connection of its own."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of connector: what can be set of it, and how it runs."""

    name: str
    settings: type[BaseModel]
    run: Run
    secrets: frozenset[str] = frozenset()
    """The names of the secrets that it understands."""
    browse: Browse | None = None


class Kinds:
    """The kinds of connectors there are, and how what is kept of one becomes a connector."""

    def __init__(self, kinds: Sequence[Kind], sealing: Sealing, destinations: Destinations) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self._sealing = sealing
        self._destinations = destinations

    def __iter__(self) -> Any:
        return iter(self._kinds.values())

    def of(self, name: str) -> Kind:
        """Return a kind. Raises Invalid if there is none of that name."""
        kind = self._kinds.get(name)
        if kind is None:
            raise invalid("/kind", f"one of {', '.join(sorted(self._kinds))}")
        return kind

    def check(self, kind: Kind, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings as they are kept, defaults filled in. Raises Invalid."""
        return _read(kind, settings).model_dump(mode="json")

    def seal(
        self, kind: Kind, connector_id: UUID, secrets: Mapping[str, SecretStr | None]
    ) -> dict[str, str | None]:
        """Return the secrets sealed, None where one is to be forgotten.

        Raises Invalid for a name that the kind does not know, Unavailable if there is no key.
        """
        unknown = sorted(set(secrets) - kind.secrets)
        if unknown:
            known = ", ".join(sorted(kind.secrets)) or "none"
            raise Invalid(
                "not a secret of this kind of connector",
                errors=[FieldError(f"/secrets/{name}", f"known: {known}") for name in unknown],
            )
        return {
            name: None if secret is None else self._sealed(connector_id, name, secret)
            for name, secret in secrets.items()
        }

    def opened(
        self,
        kept: Definition,
        devices: NamedDevices,
        remember: Callable[[dict[str, Any]], None] = lambda memory: None,
    ) -> Connector:
        """Return what is kept of a connector as a run needs it. Raises Invalid, Unavailable."""
        kind = self.of(kept.kind)
        try:
            secrets = {
                name: SecretStr(
                    self._sealing.open(bytes.fromhex(sealed), _about(kept.id, name)).decode()
                )
                for name, sealed in kept.secrets.items()
            }
        except Unsealable as error:
            raise Invalid("its secrets cannot be opened any more: set them again") from error
        return Connector(
            id=kept.id,
            tenant_id=kept.tenant_id,
            name=kept.name,
            kind=kept.kind,
            settings=_read(kind, kept.settings),
            secrets=secrets,
            version=kept.version,
            devices=devices,
            destinations=self._destinations,
            created_at=kept.created_at,
            memory=kept.memory,
            remember=remember,
        )

    def _sealed(self, connector_id: UUID, name: str, secret: SecretStr) -> str:
        value = secret.get_secret_value().encode()
        if len(value) > LONGEST_SECRET:
            raise invalid(f"/secrets/{name}", f"at most {LONGEST_SECRET} bytes")
        return self._sealing.seal(value, _about(connector_id, name)).hex()


def _about(connector_id: UUID, name: str) -> bytes:
    return connector_id.bytes + name.encode()


def _read(kind: Kind, settings: dict[str, Any]) -> BaseModel:
    try:
        return kind.settings.model_validate(settings)
    except ValidationError as error:
        raise Invalid(
            f"not the settings of a connector of kind {kind.name}",
            errors=[
                FieldError("/".join(("/settings", *map(str, fault["loc"]))), fault["msg"])
                for fault in error.errors(include_input=False, include_url=False)[:20]
            ],
        ) from error


# --- what tenants do with them


async def create(
    store: IngestStore,
    kinds: Kinds,
    *,
    name: str,
    kind: str,
    is_enabled: bool,
    settings: dict[str, Any],
    secrets: Mapping[str, SecretStr],
    at: datetime,
) -> Definition:
    """Set a connector up. Raises Invalid, Conflict if the name is taken or there are too many."""
    await store.connectors.lock()
    if await store.connectors.count() >= MOST:
        raise Conflict(f"a tenant has {MOST} connectors at most")
    known, connector_id = kinds.of(kind), uuid4()
    sealed = kinds.seal(known, connector_id, secrets)
    connector = Definition(
        id=connector_id,
        tenant_id=store.tenant_id,
        name=name,
        kind=kind,
        is_enabled=is_enabled,
        settings=kinds.check(known, settings),
        secrets={name: secret for name, secret in sealed.items() if secret is not None},
        memory={},
        created_at=at,
        updated_at=at,
        version=1,
        state=State.WAITING if is_enabled else State.DISABLED,
        reason="",
        state_at=None,
    )
    await store.connectors.add(connector)
    _say_changed(store, connector_id, at)
    return connector


async def change(
    store: IngestStore,
    kinds: Kinds,
    connector_id: UUID,
    *,
    name: str | None,
    is_enabled: bool | None,
    settings: dict[str, Any] | None,
    secrets: Mapping[str, SecretStr | None] | None,
    version: int | None,
    at: datetime,
) -> Definition:
    """Change what is given of a connector; a secret that is None is forgotten, others stay.

    Raises NotFound, Invalid, Conflict if the new name is taken, PreconditionFailed if `version` is
    given and is no longer the connector's.
    """
    connector = await store.connectors.get(connector_id, lock=True)
    if version is not None and version != connector.version:
        raise PreconditionFailed(f"the connector is at version {connector.version}, not {version}")
    kind = kinds.of(connector.kind)
    merged: dict[str, str | None] = dict(connector.secrets)
    merged |= kinds.seal(kind, connector_id, secrets or {})
    connector = replace(
        connector,
        name=connector.name if name is None else name,
        is_enabled=connector.is_enabled if is_enabled is None else is_enabled,
        settings=connector.settings if settings is None else kinds.check(kind, settings),
        secrets={name: secret for name, secret in merged.items() if secret is not None},
        updated_at=at,
        version=connector.version + 1,
    )
    await store.connectors.update(connector)
    _say_changed(store, connector_id, at)
    return await store.connectors.get(connector_id)


async def remove(store: IngestStore, connector_id: UUID, *, at: datetime) -> None:
    """Remove a connector: its connection ends. Raises NotFound."""
    await store.connectors.remove(connector_id)
    _say_changed(store, connector_id, at)


async def browse(
    kinds: Kinds, kept: Definition, devices: NamedDevices, node: str | None
) -> list[dict[str, Any]]:
    """List what lies below a node of the other side.

    Raises Conflict if that kind has nothing to browse, Unavailable if the other side does not answer.
    """
    kind = kinds.of(kept.kind)
    if kind.browse is None:
        raise Conflict(f"a connector of kind {kind.name} cannot be browsed")
    try:
        async with asyncio.timeout(BROWSE_S):
            return await kind.browse(kinds.opened(kept, devices), node)
    except TimeoutError as error:
        raise Unavailable(f"the other side did not answer within {BROWSE_S:.0f} s") from error
    except OSError as error:
        raise Unavailable(f"not connected: {_said(error)}") from error


def _said(error: OSError) -> str:
    """Return what a tenant may read of it. A file's path is ours, and what is done with it."""
    is_of_a_network = (
        isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError)
        or error.errno in _NO_WAY_THERE
    )
    if is_of_a_network:
        return str(error) or type(error).__name__
    log.error("a connection could not be opened", exc_info=error)
    return "it could not be opened"


def _say_changed(store: IngestStore, connector_id: UUID, at: datetime) -> None:
    store.emit(ConnectorChanged(tenant_id=store.tenant_id, at=at, connector_id=connector_id))


# --- the process that runs them


@dataclass(slots=True, eq=False)
class _Running:
    held: Held
    task: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    """Set once it is to end; what is to run in its place waits for that."""
    pause_s: float = FIRST_PAUSE_S
    state: State = State.CONNECTING
    reason: str = ""
    at: datetime | None = None
    memory: dict[str, Any] | None = None
    """What is to be remembered and not written yet."""
    is_noted: bool = True


class Connectors:
    """Runs the connectors that this process holds the lease of, of all tenants, up to `most`.

    While the database is away they run on: what they hear is safe on the bus. Should it be away for
    this process alone, another takes them meanwhile, and until that is heard of two of them run.
    """

    def __init__(
        self,
        kinds: Kinds,
        leases: ConnectorLeases,
        transactions: Transactions[IngestStore],
        reception: Reception,
        clock: Clock,
        *,
        lease: timedelta,
        most: int,
    ) -> None:
        self._kinds = kinds
        self._leases = leases
        self._transactions = transactions
        self._reception = reception
        self._clock = clock
        self._most = most
        self._runner_id = uuid4()
        self._running: dict[ConnectorKey, _Running] = {}
        self._looking = Ticker("ingest.connectors", lease / RENEWALS, self.look_around)
        self._noting = Ticker("ingest.connectors.notes", NOTED_EVERY, self.note)

    def start(self) -> None:
        """Begin to take and run connectors."""
        self._looking.start()
        self._noting.start()

    async def stop(self) -> None:
        """End all connections, note where they were and leave them to others."""
        await self._looking.stop()
        await self._noting.stop()
        await asyncio.gather(*(self._ending(key) for key in list(self._running)))
        try:
            async with asyncio.timeout(LONGEST_PAUSE_S):
                await self._leases.release(self._runner_id)
        except Exception:
            # A process that ends has done what it could: the leases run out by themselves.
            log.exception("the connectors' leases are left to run out")

    def wake(self) -> None:
        """Look at once whether there is another connector to run, or one to end or start anew."""
        self._looking.wake()

    async def look_around(self) -> None:
        """Renew the leases, take what nobody runs, end what is gone, restart what changed."""
        held = {
            (one.tenant_id, one.id): one
            for one in await self._leases.hold(self._runner_id, self._most)
        }
        for key, running in self._running.items():
            if key not in held or held[key].version != running.held.version:
                # Not waited for: one that takes its time must not cost all others their leases.
                self._ending(key)
        for key, one in held.items():
            if key not in self._running:
                running = _Running(one)
                self._running[key] = running
                self._say(running, State.CONNECTING, "")
                running.task = asyncio.create_task(
                    self._run_forever(running), name=f"ingest.connector.{one.id}"
                )

    async def note(self) -> None:
        """Write down how the connectors do, as far as that has changed."""
        notes, noted = {}, []
        for key, running in self._running.items():
            if running.is_noted or running.at is None:
                continue
            running.is_noted = True
            notes[key] = Note(running.state, running.reason, running.at, running.memory)
            noted.append((running, running.memory))
        if not notes:
            return
        try:
            await self._leases.note(self._runner_id, notes)
        except BaseException:
            for running, _ in noted:
                running.is_noted = False
            raise
        for running, memory in noted:
            if running.memory is memory:
                running.memory = None

    def _ending(self, key: ConnectorKey) -> "asyncio.Task[None]":
        running = self._running[key]
        if running.ending is None:
            running.ending = asyncio.create_task(
                self._end(key), name=f"ingest.connector.{key[1]}.end"
            )
        return running.ending

    async def _end(self, key: ConnectorKey) -> None:
        running = self._running[key]
        if running.task is not None:
            await end(running.task)
        if running.memory is not None:
            # What it remembered last is wanted by who runs it next.
            running.is_noted = False
            try:
                await self.note()
            except Exception:
                # It ends all the same, and what is read twice is stored once.
                log.exception("what a connector remembered is lost", connector=str(key[1]))
        del self._running[key]
        self._looking.wake()

    async def _run_forever(self, running: _Running) -> None:
        key = running.held.tenant_id, running.held.id
        with structlog.contextvars.bound_contextvars(tenant=str(key[0]), connector=str(key[1])):
            while True:
                try:
                    await self._run_once(running)
                    self._say(running, State.FAILED, "the connection ended")
                except asyncio.CancelledError as error:
                    if is_own_cancellation(error):
                        raise
                    self._say(running, State.FAILED, "the connection was cancelled")
                except AppError as error:
                    self._say(running, State.FAILED, error.detail)
                except OSError as error:
                    self._say(running, State.FAILED, _said(error))
                except Exception as error:
                    if not is_transient(error):
                        # Ours to find. A connector that ended for it would be missed by nobody.
                        log.exception("a connector failed")
                    # Its text may be about what is ours alone, such as a statement of SQL.
                    self._say(running, State.FAILED, f"it failed here: {type(error).__name__}")
                log.warning("a connector is down", reason=running.reason)
                await asyncio.sleep(running.pause_s)
                running.pause_s = min(LONGEST_PAUSE_S, 2 * running.pause_s)
                self._say(running, State.CONNECTING, running.reason)

    async def _run_once(self, running: _Running) -> None:
        held = running.held
        try:
            async with self._transactions.begin(held.tenant_id) as store:
                kept = await store.connectors.get(held.id)
        except Exception as error:
            if isinstance(error, AppError) or not is_transient(error):
                raise
            # The tenant reads the reason, and our database's address is none of theirs.
            raise Unavailable("its settings cannot be read now") from error

        is_told = False

        def remember(memory: dict[str, Any]) -> None:
            nonlocal is_told
            size = len(msgspec.json.encode(memory))
            if size > MOST_MEMORY_BYTES:
                if not is_told:
                    log.warning("a connector would remember too much", bytes=size)
                is_told = True
                return
            running.memory = memory
            running.is_noted = False

        def report(state: State, reason: str) -> None:
            if state in (State.CONNECTED, State.DEGRADED):
                running.pause_s = FIRST_PAUSE_S
            self._say(running, state, reason)

        # What was remembered and is not written yet is newer than what was read.
        if running.memory is not None:
            kept = replace(kept, memory=running.memory)
        devices = NamedDevices(held.tenant_id, self._reception.sources, self._transactions)
        connector = self._kinds.opened(kept, devices, remember)
        await self._kinds.of(kept.kind).run(connector, self._reception, report)

    def _say(self, running: _Running, state: State, reason: str) -> None:
        reason = reason[:LONGEST_REASON].replace("\0", "")
        if (running.state, running.reason) == (state, reason) and running.at is not None:
            return
        if running.state is not state:
            log.info("connector", connector=str(running.held.id), state=state, reason=reason)
        running.state, running.reason, running.at = state, reason, self._clock.now()
        running.is_noted = False
