"""Commands: one tenant's as its users see them, and those of all that are to be sent or are overdue."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.db.transactions import Joint, JointTransactions
from libs.common.errors import NotFound
from services.ingest.domain.command import Command, CommandStatus, Outgoing, Step, numbered
from services.ingest.store.connections import DeviceKey
from services.ingest.store.tables import CommandRow, CommandStepRow

MOST_STEPS_SENT = 20
"""So many times it is written down that a command is about to be sent, and that it was not; from then on
only what was sent, and only when that is known."""
MOST_RESENDS = 10
"""A command that nobody says has arrived is sent so many times at most."""


class Commands:
    """The commands of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, command: Command) -> bool:
        """Keep a new command; False if there is one of this id already, which stays as it is."""
        result = await self._session.execute(
            insert(CommandRow)
            .values(
                tenant_id=self._tenant_id,
                id=command.id,
                device_id=command.device_id,
                name=command.name,
                params=command.params,
                two_way=command.two_way,
                timeout=command.timeout,
                status=command.status.value,
                created_by=command.created_by,
                created_at=command.created_at,
                expires_at=command.expires_at,
                completed_at=command.completed_at,
                due_at=None if command.status.is_final else command.expires_at,
                error=command.error,
            )
            .on_conflict_do_nothing()
            .returning(CommandRow.id)
        )
        if result.scalar() is None:
            return False
        await self.note(command.id, command.created_at, command.status, command.error or "")
        return True

    async def count_open(self, device_id: UUID) -> int:
        """Return how many commands of the device are not done."""
        query = select(func.count()).where(
            CommandRow.tenant_id == self._tenant_id,
            CommandRow.device_id == device_id,
            CommandRow.completed_at.is_(None),
        )
        return await self._session.scalar(query) or 0

    async def get(self, device_id: UUID, command_id: UUID, *, lock: bool = False) -> Command:
        """Return a device's command, locked until the transaction ends if asked. Raises NotFound."""
        query = select(CommandRow).where(
            CommandRow.tenant_id == self._tenant_id,
            CommandRow.device_id == device_id,
            CommandRow.id == command_id,
        )
        if lock:
            query = query.with_for_update().execution_options(populate_existing=True)
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no command {command_id}")
        return _to_command(row)

    async def of_number(self, device_id: UUID, number: int) -> UUID | None:
        """Return the newest of the device's latest 200 commands that has this number."""
        newest = (
            select(CommandRow.id)
            .where(CommandRow.tenant_id == self._tenant_id, CommandRow.device_id == device_id)
            .order_by(CommandRow.created_at.desc(), CommandRow.id.desc())
            .limit(200)
        )
        ids = await self._session.scalars(newest)
        return next((found for found in ids if numbered(found) == number), None)

    async def page(
        self,
        device_id: UUID,
        limit: int,
        before: tuple[datetime, UUID] | None,
        status: CommandStatus | None,
    ) -> list[Command]:
        """Return up to `limit` commands, newest first, before the given (created_at, id)."""
        query = (
            select(CommandRow)
            .where(CommandRow.tenant_id == self._tenant_id, CommandRow.device_id == device_id)
            .order_by(CommandRow.created_at.desc(), CommandRow.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tuple_(CommandRow.created_at, CommandRow.id) < before)
        if status is not None:
            query = query.where(CommandRow.status == status)
        return [_to_command(row) for row in await self._session.scalars(query)]

    async def open_of(self, device_id: UUID) -> list[Command]:
        """Return the device's commands that are not done, locked until the transaction ends."""
        query = (
            select(CommandRow)
            .where(
                CommandRow.tenant_id == self._tenant_id,
                CommandRow.device_id == device_id,
                CommandRow.completed_at.is_(None),
            )
            .order_by(CommandRow.id)
            .with_for_update()
        )
        return [_to_command(row) for row in await self._session.scalars(query)]

    async def update(self, command: Command, at: datetime, detail: str = "") -> None:
        """Save how far a command that is locked has come, and note the step."""
        ended = {"due_at": None} if command.status.is_final else {}
        await self._session.execute(
            update(CommandRow)
            .where(CommandRow.tenant_id == self._tenant_id, CommandRow.id == command.id)
            .values(
                status=command.status.value,
                acknowledged_at=command.acknowledged_at,
                completed_at=command.completed_at,
                result=command.result,
                error=command.error,
                **ended,
            )
        )
        await self.note(command.id, at, command.status, detail)

    async def note(
        self, command_id: UUID, at: datetime, status: CommandStatus, detail: str
    ) -> None:
        """Write down what happened to a command."""
        await self._session.execute(
            insert(CommandStepRow)
            .values(
                tenant_id=self._tenant_id,
                command_id=command_id,
                at=at,
                status=status.value,
                detail=detail,
            )
            .inline()
        )

    async def steps(self, command_id: UUID) -> list[Step]:
        """Return what happened to a command, in order."""
        query = (
            select(CommandStepRow)
            .where(
                CommandStepRow.tenant_id == self._tenant_id,
                CommandStepRow.command_id == command_id,
            )
            .order_by(CommandStepRow.seq)
        )
        return [
            Step(row.at, CommandStatus(row.status), row.detail)
            for row in await self._session.scalars(query)
        ]


class Sent(StrEnum):
    """How it went when a command was sent."""

    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    RETURNED = "returned"
    """It has not left, the way was closed: it waits again."""
    LATE = "late"
    """It has not left, for its time was over: it waits for its end."""
    FAILED = "failed"
    """The device cannot be given it."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A command that is this process's to send now."""

    tenant_id: UUID
    device_id: UUID
    claim: int
    """Counts the claims: what is told of an earlier one is not heard any more."""
    outgoing: Outgoing


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went when a claimed command was sent."""

    claimed: Claimed
    sent: Sent
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that nothing more becomes of."""

    tenant_id: UUID
    command_id: UUID
    device_id: UUID
    name: str
    status: CommandStatus
    error: str | None
    created_by: str
    at: datetime


# A command of a device that is to be sent now, or sent again.
_TO_SEND = """
    c.tenant_id = w.tenant_id AND c.device_id = w.device_id AND c.completed_at IS NULL
    AND c.status IN ('queued', 'sent') AND c.expires_at > (SELECT sec.iiot_now())
    AND (c.status = 'queued' OR (
      c.due_at > (SELECT sec.iiot_now()) AND c.attempts < :most_resends
      AND coalesce(c.tried_at <= (SELECT sec.iiot_now()) - cast(:resend_after AS interval), true)))
"""

# It counts as sent from here on, for the device may answer at once, or this process die.
_CLAIM = text(
    f"""
    WITH due AS MATERIALIZED (
      SELECT d.tenant_id, d.id, d.status
      FROM unnest(cast(:tenants AS uuid[]), cast(:devices AS uuid[]), cast(:most AS int[]))
        AS w(tenant_id, device_id, most)
      CROSS JOIN LATERAL (
        SELECT c.tenant_id, c.id, c.status FROM ingest.commands c
        WHERE {_TO_SEND}
        ORDER BY c.seq LIMIT w.most
        FOR NO KEY UPDATE SKIP LOCKED) d
    ), moved AS (
      UPDATE ingest.commands c
      SET status = 'sent', claims = c.claims + 1, attempts = c.attempts + 1,
        sent_at = coalesce(c.sent_at, (SELECT sec.iiot_now())), tried_at = (SELECT sec.iiot_now()),
        due_at = CASE due.status WHEN 'queued' THEN (SELECT sec.iiot_now()) + c.timeout
                 ELSE c.due_at END
      FROM due WHERE c.tenant_id = due.tenant_id AND c.id = due.id
      RETURNING c.*
    ), noted AS (
      INSERT INTO ingest.command_steps (tenant_id, command_id, at, status, detail)
      SELECT tenant_id, id, tried_at, 'sent',
        CASE WHEN attempts = 1 THEN '' ELSE 'attempt ' || attempts END
      FROM moved WHERE claims <= :most_steps
    )
    SELECT tenant_id, device_id, id, claims, name, params, created_at, expires_at
    FROM moved ORDER BY seq
    """  # noqa: S608 - put together from constants
)

# What is not known to have arrived stays as it is, unless nobody waits for the device's answer.
_DELIVER = text(
    """
    WITH held AS MATERIALIZED (
      SELECT c.tenant_id, c.id, w.outcome, w.error,
        w.outcome IN ('returned', 'late') AS is_back, c.attempts > 1 AS was_sent_before
      FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:claims AS int[]),
                  cast(:outcomes AS text[]), cast(:errors AS text[]))
        AS w(tenant_id, id, claim, outcome, error)
      JOIN ingest.commands c ON c.tenant_id = w.tenant_id AND c.id = w.id
      WHERE c.status = 'sent' AND c.claims = w.claim
        AND NOT (w.outcome = 'sent' AND c.two_way)
      ORDER BY c.tenant_id, c.id FOR NO KEY UPDATE OF c
    ), moved AS (
      UPDATE ingest.commands c
      SET status = CASE WHEN h.is_back AND h.was_sent_before THEN 'sent'
                   WHEN h.is_back THEN 'queued'
                   WHEN h.outcome = 'failed' THEN 'failed'
                   WHEN c.two_way THEN 'acknowledged'
                   ELSE 'succeeded' END,
        attempts = c.attempts - CASE WHEN h.is_back THEN 1 ELSE 0 END,
        sent_at = CASE WHEN h.is_back AND NOT h.was_sent_before THEN NULL ELSE c.sent_at END,
        tried_at = CASE WHEN h.is_back THEN NULL ELSE c.tried_at END,
        acknowledged_at =
          CASE h.outcome WHEN 'acknowledged' THEN (SELECT sec.iiot_now()) END,
        completed_at = CASE WHEN h.outcome = 'failed' OR NOT (h.is_back OR c.two_way)
                       THEN (SELECT sec.iiot_now()) END,
        due_at = CASE WHEN h.is_back AND NOT h.was_sent_before THEN c.expires_at
                 WHEN h.is_back OR (c.two_way AND h.outcome <> 'failed') THEN c.due_at END,
        error = h.error
      FROM held h WHERE c.tenant_id = h.tenant_id AND c.id = h.id
      RETURNING c.*, h.is_back
    ), noted AS (
      INSERT INTO ingest.command_steps (tenant_id, command_id, at, status, detail)
      SELECT tenant_id, id, (SELECT sec.iiot_now()), status,
        CASE WHEN is_back THEN 'it could not be sent' ELSE coalesce(error, '') END
      FROM moved WHERE claims <= :most_steps OR NOT is_back
    )
    SELECT tenant_id, id, device_id, name, status, error, created_by, completed_at
    FROM moved WHERE completed_at IS NOT NULL
    """
)

# Of those that were claimed too often to be written down each time.
_NOTE_SENT = text(
    """
    INSERT INTO ingest.command_steps (tenant_id, command_id, at, status, detail)
    SELECT c.tenant_id, c.id, c.tried_at, 'sent',
      CASE WHEN c.attempts = 1 THEN '' ELSE 'attempt ' || c.attempts END
    FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:claims AS int[]))
      AS w(tenant_id, id, claim)
    JOIN ingest.commands c ON c.tenant_id = w.tenant_id AND c.id = w.id AND c.claims = w.claim
    """
)

_FINISH = text(
    """
    WITH held AS MATERIALIZED (
      SELECT c.tenant_id, c.id
      FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[])) AS w(tenant_id, id)
      JOIN ingest.commands c ON c.tenant_id = w.tenant_id AND c.id = w.id
      WHERE c.due_at <= (SELECT sec.iiot_now())
      ORDER BY c.tenant_id, c.id FOR NO KEY UPDATE OF c
    ), moved AS (
      UPDATE ingest.commands c
      SET status = CASE c.status WHEN 'queued' THEN 'expired' ELSE 'failed' END,
        error = CASE c.status WHEN 'queued' THEN NULL ELSE 'timeout' END,
        completed_at = (SELECT sec.iiot_now()), due_at = NULL
      FROM held WHERE c.tenant_id = held.tenant_id AND c.id = held.id
      RETURNING c.*
    ), noted AS (
      INSERT INTO ingest.command_steps (tenant_id, command_id, at, status, detail)
      SELECT tenant_id, id, completed_at, status, coalesce(error, '') FROM moved
    )
    SELECT tenant_id, id, device_id, name, status, error, created_by, completed_at FROM moved
    """
)

_DUE = text(
    "SELECT tenant_id, id FROM ingest.commands WHERE due_at <= (SELECT sec.iiot_now())"
    " ORDER BY due_at LIMIT :most"
)

_WAITING = text(
    f"""
    SELECT w.device_id
    FROM unnest(cast(:tenants AS uuid[]), cast(:devices AS uuid[])) AS w(tenant_id, device_id)
    WHERE EXISTS (SELECT FROM ingest.commands c WHERE {_TO_SEND})
    """  # noqa: S608 - as above
)

_FORGET = text(
    "DELETE FROM ingest.commands"
    " WHERE completed_at < (SELECT sec.iiot_now()) - cast(:kept AS interval)"
)


class Dispatching(Joint):
    """An open transaction of several tenants, in which commands are taken to be sent, or ended."""

    async def claim(
        self, devices: Mapping[DeviceKey, int], resend_after: timedelta
    ) -> list[Claimed]:
        """Take commands of each device to be sent now, in order, so many at most.

        What was sent so long ago and is not known to have arrived is taken again.
        """
        rows = await self.connection.execute(
            _CLAIM,
            {
                "tenants": [tenant for tenant, _ in devices],
                "devices": [device for _, device in devices],
                "most": list(devices.values()),
                "most_resends": MOST_RESENDS,
                "most_steps": MOST_STEPS_SENT,
                "resend_after": resend_after,
            },
        )
        return [
            Claimed(
                row.tenant_id,
                row.device_id,
                row.claims,
                Outgoing(row.id, row.name, _document(row.params), row.created_at, row.expires_at),
            )
            for row in rows
        ]

    async def deliver(self, outcomes: Sequence[Outcome]) -> list[Completed]:
        """Note how it went; return what is done by that."""
        unnoted = [
            outcome.claimed
            for outcome in outcomes
            if outcome.claimed.claim > MOST_STEPS_SENT
            and outcome.sent not in (Sent.RETURNED, Sent.LATE)
        ]
        if unnoted:
            await self.connection.execute(_NOTE_SENT, _keys(unnoted))
        rows = await self.connection.execute(
            _DELIVER,
            {
                **_keys([outcome.claimed for outcome in outcomes]),
                "outcomes": [outcome.sent.value for outcome in outcomes],
                "errors": [outcome.error for outcome in outcomes],
                "most_steps": MOST_STEPS_SENT,
            },
        )
        return _to_completed(rows)

    async def finish(self, commands: Sequence[tuple[UUID, UUID]]) -> list[Completed]:
        """End those of the commands (tenant, id) whose time is over; return them."""
        rows = await self.connection.execute(
            _FINISH,
            {
                "tenants": [tenant for tenant, _ in commands],
                "ids": [command for _, command in commands],
            },
        )
        return _to_completed(rows)


class Dispatches(JointTransactions[Dispatching]):
    """Opens dispatchings, and finds what is due in all tenants."""

    def __init__(self, database: Database, engine: Database, outbox: Outbox) -> None:
        super().__init__(database, outbox, Dispatching)
        self._engine = engine

    async def due(self, most: int) -> list[tuple[UUID, UUID]]:
        """Return up to `most` commands (tenant, id) whose time is over."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(_DUE, {"most": most})
            return [(row.tenant_id, row.id) for row in rows]

    async def waiting(self, devices: Sequence[DeviceKey], resend_after: timedelta) -> list[UUID]:
        """Return which of the devices have commands to be sent, or to be sent again."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                _WAITING,
                {
                    "tenants": [tenant for tenant, _ in devices],
                    "devices": [device for _, device in devices],
                    "most_resends": MOST_RESENDS,
                    "resend_after": resend_after,
                },
            )
            return list(rows.scalars())

    async def forget(self, kept: timedelta) -> None:
        """Forget commands that were done so long ago, and their steps."""
        async with self._engine.connection() as connection:
            await connection.execute(_FORGET, {"kept": kept})


def _keys(claimed: Sequence[Claimed]) -> dict[str, list[Any]]:
    return {
        "tenants": [one.tenant_id for one in claimed],
        "ids": [one.outgoing.id for one in claimed],
        "claims": [one.claim for one in claimed],
    }


def _to_completed(rows: Iterable[Row[Any]]) -> list[Completed]:
    return [
        Completed(
            row.tenant_id,
            row.id,
            row.device_id,
            row.name,
            CommandStatus(row.status),
            row.error,
            row.created_by,
            row.completed_at,
        )
        for row in rows
    ]


def _document(column: Any) -> dict[str, Any]:
    """Return a jsonb column of a plain statement, which the driver may hand over as text."""
    document: dict[str, Any] = json.loads(column) if isinstance(column, str) else column
    return document


def _to_command(row: CommandRow) -> Command:
    return Command(
        id=row.id,
        device_id=row.device_id,
        name=row.name,
        params=row.params,
        two_way=row.two_way,
        timeout=row.timeout,
        status=CommandStatus(row.status),
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        sent_at=row.sent_at,
        acknowledged_at=row.acknowledged_at,
        completed_at=row.completed_at,
        attempts=row.attempts,
        result=row.result,
        error=row.error,
    )
