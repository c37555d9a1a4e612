"""Connectors: a tenant's own, and which process runs which, of all tenants."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Text, Uuid, any_, delete, func, literal, or_, select, text, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.db.tables import TenantOwned
from libs.common.db.transactions import Joint, JointTransactions
from libs.common.errors import Conflict, NotFound
from services.ingest.domain.connector import Definition, Held, State
from services.ingest.store.tables import DeviceRow, IngestRow

ConnectorKey = tuple[UUID, UUID]
"""Tenant and connector."""


class ConnectorRow(TenantOwned, IngestRow):
    """A connection out."""

    __tablename__ = "connectors"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    is_enabled: Mapped[bool]
    settings: Mapped[dict[str, Any]] = mapped_column(JSONB)
    secrets: Mapped[dict[str, Any]] = mapped_column(JSONB)
    memory: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]
    runner_id: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    state: Mapped[str | None]
    reason: Mapped[str]
    state_at: Mapped[datetime | None]


_IS_RUN = ConnectorRow.lease_until > text("(SELECT sec.iiot_now())")


class ConnectorRows:
    """The connectors of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, connector: Definition) -> None:
        """Keep a new connector. Raises Conflict if the tenant has one of that name."""
        row = ConnectorRow(
            tenant_id=self._tenant_id,
            id=connector.id,
            kind=connector.kind,
            created_at=connector.created_at,
            memory=connector.memory,
            reason="",
        )
        await self._save(row, connector)

    async def lock(self) -> None:
        """Let nobody else add a connector until the transaction ends."""
        await self._session.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:turn, 0))"),
            {"turn": f"ingest.connectors {self._tenant_id}"},
        )

    async def count(self) -> int:
        """Return how many there are."""
        query = select(func.count()).where(ConnectorRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, connector_id: UUID, *, lock: bool = False) -> Definition:
        """Return a connector, locked until the transaction ends if asked. Raises NotFound."""
        query = select(ConnectorRow, _IS_RUN).where(
            ConnectorRow.tenant_id == self._tenant_id, ConnectorRow.id == connector_id
        )
        if lock:
            query = query.with_for_update()
        found = (await self._session.execute(query)).one_or_none()
        if found is None:
            raise NotFound(f"no connector {connector_id}")
        return _to_definition(*found)

    async def page(self, limit: int, after: tuple[datetime, UUID] | None) -> list[Definition]:
        """Return up to `limit` connectors, oldest first, after the given (created_at, id)."""
        query = (
            select(ConnectorRow, _IS_RUN)
            .where(ConnectorRow.tenant_id == self._tenant_id)
            .order_by(ConnectorRow.created_at, ConnectorRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(ConnectorRow.created_at, ConnectorRow.id) > after)
        return [_to_definition(*found) for found in await self._session.execute(query)]

    async def update(self, connector: Definition) -> None:
        """Save what may change of a locked connector. Raises Conflict if its new name is taken."""
        row = await self._session.get_one(ConnectorRow, connector.id)
        await self._save(row, connector)

    async def remove(self, connector_id: UUID) -> None:
        """Remove a connector. Raises NotFound."""
        removed = await self._session.scalar(
            delete(ConnectorRow)
            .where(ConnectorRow.tenant_id == self._tenant_id, ConnectorRow.id == connector_id)
            .returning(ConnectorRow.id)
        )
        if removed is None:
            raise NotFound(f"no connector {connector_id}")

    async def device_named(self, name: str) -> UUID | None:
        """Return the device of that name, None if the tenant has none."""
        query = select(DeviceRow.id).where(
            DeviceRow.tenant_id == self._tenant_id,
            DeviceRow.name == name,
            DeviceRow.deleted_at.is_(None),
        )
        return await self._session.scalar(query)

    async def has_device(self, names: Collection[str], ids: Collection[UUID]) -> bool:
        """Whether the tenant has a device of one of these names or ids."""
        query = select(DeviceRow.id).where(
            DeviceRow.tenant_id == self._tenant_id,
            DeviceRow.deleted_at.is_(None),
            or_(
                DeviceRow.name == any_(literal(list(names), ARRAY(Text))),
                DeviceRow.id == any_(literal(list(ids), ARRAY(Uuid))),
            ),
        )
        return await self._session.scalar(query.limit(1)) is not None

    async def _save(self, row: ConnectorRow, connector: Definition) -> None:
        row.name = connector.name
        row.is_enabled = connector.is_enabled
        row.settings = connector.settings
        row.secrets = connector.secrets
        row.updated_at = connector.updated_at
        row.version = connector.version
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "connectors_tenant_id_name_key" in str(error.orig):
                raise Conflict(f"there is a connector named {connector.name!r} already") from error
            raise


def _to_definition(row: ConnectorRow, is_run: bool | None) -> Definition:
    if not row.is_enabled:
        state, reason = State.DISABLED, ""
    elif not is_run or row.state is None:
        state, reason = State.WAITING, ""
    else:
        state, reason = State(row.state), row.reason
    return Definition(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        kind=row.kind,
        is_enabled=row.is_enabled,
        settings=row.settings,
        secrets=row.secrets,
        memory=row.memory,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
        state=state,
        reason=reason,
        state_at=row.state_at,
    )


# What a process has and may keep: it is wanted still, and nobody else could take it meanwhile.
_RENEW = text(
    """
    UPDATE ingest.connectors c SET lease_until = (SELECT sec.iiot_now()) + cast(:lease AS interval)
    WHERE c.runner_id = :runner AND c.is_enabled AND c.lease_until > (SELECT sec.iiot_now())
      AND NOT EXISTS (
        SELECT FROM ingest.tenants t WHERE t.tenant_id = c.tenant_id AND t.status <> 'active')
    RETURNING c.tenant_id, c.id, c.version
    """
)

_CLAIM = text(
    """
    UPDATE ingest.connectors c
    SET runner_id = :runner, lease_until = (SELECT sec.iiot_now()) + cast(:lease AS interval)
    FROM (
      SELECT tenant_id, id FROM ingest.connectors f
      WHERE is_enabled AND (lease_until IS NULL OR lease_until <= (SELECT sec.iiot_now()))
        AND NOT EXISTS (
          SELECT FROM ingest.tenants t WHERE t.tenant_id = f.tenant_id AND t.status <> 'active')
      LIMIT :most FOR UPDATE SKIP LOCKED
    ) AS free
    WHERE c.tenant_id = free.tenant_id AND c.id = free.id
    RETURNING c.tenant_id, c.id, c.version
    """
)

_RELEASE = text(
    "UPDATE ingest.connectors SET runner_id = NULL, lease_until = NULL WHERE runner_id = :runner"
)

_NOTE = text(
    """
    UPDATE ingest.connectors c
    SET state = w.state, reason = w.reason, state_at = w.state_at,
      memory = coalesce(w.memory::jsonb, c.memory)
    FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:states AS text[]),
                cast(:reasons AS text[]), cast(:ats AS timestamptz[]), cast(:memories AS text[]))
      AS w(tenant_id, id, state, reason, state_at, memory)
    WHERE c.tenant_id = w.tenant_id AND c.id = w.id AND c.runner_id = :runner
    """
)


@dataclass(frozen=True, slots=True)
class Note:
    """What a run says of itself; `memory` is None if that has not changed."""

    state: State
    reason: str
    at: datetime
    memory: dict[str, Any] | None


class ConnectorLeases(JointTransactions[Joint]):
    """Gives connectors to processes, and notes how they do. `engine` crosses tenants."""

    def __init__(
        self, database: Database, engine: Database, outbox: Outbox, lease: timedelta
    ) -> None:
        super().__init__(database, outbox, Joint)
        self._engine = engine
        self._lease = lease

    async def hold(self, runner_id: UUID, most: int) -> list[Held]:
        """Renew what the process has and take what nobody has, up to `most` in all; return both."""
        own = {"runner": runner_id, "lease": self._lease}
        async with self._engine.connection() as connection:
            held = list(await connection.execute(_RENEW, own))
            if len(held) < most:
                room = {**own, "most": most - len(held)}
                held += list(await connection.execute(_CLAIM, room))
        return [Held(row.tenant_id, row.id, row.version) for row in held]

    async def release(self, runner_id: UUID) -> None:
        """Give up all that the process has, so that others may take it at once."""
        async with self._engine.connection() as connection:
            await connection.execute(_RELEASE, {"runner": runner_id})

    async def note(self, runner_id: UUID, notes: Mapping[ConnectorKey, Note]) -> None:
        """Note how connectors do that the process runs."""
        async with self.begin({tenant for tenant, _ in notes}) as joint:
            await joint.connection.execute(
                _NOTE,
                {
                    "runner": runner_id,
                    "tenants": [tenant for tenant, _ in notes],
                    "ids": [connector for _, connector in notes],
                    "states": [note.state.value for note in notes.values()],
                    "reasons": [note.reason for note in notes.values()],
                    "ats": [note.at for note in notes.values()],
                    "memories": [
                        None if note.memory is None else msgspec.json.encode(note.memory).decode()
                        for note in notes.values()
                    ],
                },
            )
