"""The door of telemetry: one transaction for the tenants of a batch, fenced by the shard's owner.

A worker evaluates a shard from memory as long as it owns it (`rules.shards`). It asks from time to
time whether it still does; before it writes, it locks the row, so that nobody else can take the
shard over in the midst of it.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database, bound_to
from libs.common.db.transactions import current_traceparent
from libs.common.events.base import Event, to_message
from services.rules.domain.firing import State
from services.rules.domain.rule import Rule

_CURRENT = text(
    """
    SELECT r.id, r.version FROM rules.rules r
    JOIN unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[])) AS w(tenant_id, id)
      ON r.tenant_id = w.tenant_id AND r.id = w.id
    WHERE r.enabled ORDER BY r.tenant_id, r.id FOR SHARE OF r
    """
)

_STATES = text(
    """
    SELECT s.rule_id, s.device_id, (extract(epoch FROM s.last_ts) * 1000000)::bigint AS last_ts,
      (extract(epoch FROM s.since) * 1000000)::bigint AS since,
      (extract(epoch FROM s.fired_at) * 1000000)::bigint AS fired_at
    FROM rules.rule_state s
    JOIN unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:devices AS uuid[]))
      AS w(tenant_id, rule_id, device_id) USING (tenant_id, rule_id, device_id)
    """
)

_SAVE = text(
    """
    INSERT INTO rules.rule_state (tenant_id, rule_id, device_id, last_ts, since, fired_at)
    SELECT tenant_id, rule_id, device_id,
      '1970-01-01Z'::timestamptz + last_ts * interval '1 microsecond',
      '1970-01-01Z'::timestamptz + since * interval '1 microsecond',
      '1970-01-01Z'::timestamptz + fired_at * interval '1 microsecond'
    FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:devices AS uuid[]),
                cast(:last_ts AS bigint[]), cast(:since AS bigint[]), cast(:fired_at AS bigint[]))
      AS w(tenant_id, rule_id, device_id, last_ts, since, fired_at)
    ON CONFLICT (tenant_id, rule_id, device_id) DO UPDATE
    SET last_ts = excluded.last_ts, since = excluded.since, fired_at = excluded.fired_at
    """
)


@dataclass(frozen=True, slots=True)
class Progress:
    """A rule and a device, and the state to be written."""

    rule: Rule
    device_id: UUID
    state: State


class Checkpoint:
    """An open transaction of several tenants, in which states are written and events said."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.emitted: list[Event] = []

    def emit(self, event: Event) -> None:
        """Say that something happened; it is published if and only if the transaction commits."""
        self.emitted.append(event)

    async def holds(self, shards: Iterable[int], owner: UUID) -> bool:
        """Whether all the shards are the owner's; they stay so until the transaction ends."""
        wanted = sorted(set(shards))
        rows = await self._connection.execute(
            text(
                "SELECT owner FROM rules.shards WHERE shard = ANY(cast(:shards AS int[]))"
                " ORDER BY shard FOR SHARE"
            ),
            {"shards": wanted},
        )
        return [row.owner for row in rows] == [owner] * len(wanted)

    async def outdated(self, rules: Iterable[Rule]) -> list[UUID]:
        """Return the rules that have changed, or are enabled no more; the others stay as they are."""
        wanted = {rule.id: rule for rule in rules}
        rows = await self._connection.execute(
            _CURRENT,
            {
                "tenants": [rule.tenant_id for rule in wanted.values()],
                "ids": list(wanted),
            },
        )
        current = {row.id: row.version for row in rows}
        return [rule.id for rule in wanted.values() if current.get(rule.id) != rule.version]

    async def save(self, progress: Sequence[Progress]) -> None:
        """Write states in place of older ones."""
        await self._connection.execute(
            _SAVE,
            {
                **_keys([(p.rule, p.device_id) for p in progress]),
                "last_ts": [p.state.last_ts for p in progress],
                "since": [p.state.since for p in progress],
                "fired_at": [p.state.fired_at for p in progress],
            },
        )


class Checkpoints:
    """Opens checkpoints, reads states, and keeps who owns which shard."""

    def __init__(self, database: Database, engine: Database, outbox: Outbox) -> None:
        self._database = database
        self._engine = engine
        self._outbox = outbox

    @asynccontextmanager
    async def begin(self, tenants: Iterable[UUID]) -> AsyncIterator[Checkpoint]:
        """Open a transaction for these tenants; commit it, with its events, when the block ends."""
        with bound_to(tenants):
            async with self._database.connection() as connection:
                checkpoint = Checkpoint(connection)
                yield checkpoint
                if checkpoint.emitted:
                    traceparent = current_traceparent()
                    messages = [to_message(e, traceparent=traceparent) for e in checkpoint.emitted]
                    await self._outbox.write(connection, messages)
        if checkpoint.emitted:
            self._outbox.committed()

    async def states(
        self, wanted: Sequence[tuple[Rule, UUID]]
    ) -> Mapping[tuple[UUID, UUID], State]:
        """Return the states that were written, by rule and device; nothing for what never was."""
        with bound_to({rule.tenant_id for rule, _ in wanted}):
            async with self._database.connection() as connection:
                rows = await connection.execute(_STATES, _keys(wanted))
                return {
                    (row.rule_id, row.device_id): State(row.last_ts, row.since, row.fired_at)
                    for row in rows
                }

    async def owner_of(self, shard: int) -> UUID | None:
        """Return who owns the shard."""
        async with self._engine.connection() as connection:
            owner: UUID | None = await connection.scalar(
                text("SELECT owner FROM rules.shards WHERE shard = :shard"), {"shard": shard}
            )
            return owner

    async def claim(self, shard: int, owner: UUID) -> UUID | None:
        """Make someone the owner of the shard; return who was. Waits for what that one is writing."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text("INSERT INTO rules.shards (shard) VALUES (:shard) ON CONFLICT DO NOTHING"),
                {"shard": shard},
            )
            previous: UUID | None = await connection.scalar(
                text("SELECT owner FROM rules.shards WHERE shard = :shard FOR UPDATE"),
                {"shard": shard},
            )
            await connection.execute(
                text("UPDATE rules.shards SET owner = :owner WHERE shard = :shard"),
                {"shard": shard, "owner": owner},
            )
            return previous

    async def release(self, owner: UUID) -> None:
        """Give up every shard that the owner has."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text("UPDATE rules.shards SET owner = NULL WHERE owner = :owner"), {"owner": owner}
            )


def _keys(wanted: Sequence[tuple[Rule, UUID]]) -> dict[str, list[UUID]]:
    return {
        "tenants": [rule.tenant_id for rule, _ in wanted],
        "ids": [rule.id for rule, _ in wanted],
        "devices": [device_id for _, device_id in wanted],
    }
