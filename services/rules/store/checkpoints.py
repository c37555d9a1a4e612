"""The door of telemetry: one transaction for the tenants of a batch."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database, bound_to
from libs.common.db.transactions import Joint, JointTransactions
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
    SELECT s.rule_id, s.device_id,
      (extract(epoch FROM coalesce(s.last_at, s.last_ts)) * 1000000)::bigint AS last_at,
      (extract(epoch FROM s.last_ts) * 1000000)::bigint AS last_ts,
      (extract(epoch FROM s.since) * 1000000)::bigint AS since,
      (extract(epoch FROM s.fired_at) * 1000000)::bigint AS fired_at
    FROM rules.rule_state s
    JOIN unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:devices AS uuid[]))
      AS w(tenant_id, rule_id, device_id) USING (tenant_id, rule_id, device_id)
    """
)

_SAVE = text(
    """
    INSERT INTO rules.rule_state (tenant_id, rule_id, device_id, last_at, last_ts, since, fired_at)
    SELECT tenant_id, rule_id, device_id,
      '1970-01-01Z'::timestamptz + last_at * interval '1 microsecond',
      '1970-01-01Z'::timestamptz + last_ts * interval '1 microsecond',
      '1970-01-01Z'::timestamptz + since * interval '1 microsecond',
      '1970-01-01Z'::timestamptz + fired_at * interval '1 microsecond'
    FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:devices AS uuid[]),
                cast(:last_at AS bigint[]), cast(:last_ts AS bigint[]), cast(:since AS bigint[]),
                cast(:fired_at AS bigint[]))
      AS w(tenant_id, rule_id, device_id, last_at, last_ts, since, fired_at)
    ON CONFLICT (tenant_id, rule_id, device_id) DO UPDATE
    SET last_at = excluded.last_at, last_ts = excluded.last_ts, since = excluded.since, fired_at = excluded.fired_at
    """
)


@dataclass(frozen=True, slots=True)
class Progress:
    """A rule and a device, and the state to be written."""

    rule: Rule
    device_id: UUID
    state: State


class Checkpoint(Joint):
    """An open transaction of several tenants, in which states are written and events said."""

    async def outdated(self, rules: Iterable[Rule]) -> list[UUID]:
        """Return the rules that have changed, or are enabled no more; the others stay as they are."""
        wanted = {rule.id: rule for rule in rules}
        rows = await self.connection.execute(
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
        await self.connection.execute(
            _SAVE,
            {
                **_keys([(p.rule, p.device_id) for p in progress]),
                "last_at": [p.state.last_at for p in progress],
                "last_ts": [p.state.last_ts for p in progress],
                "since": [p.state.since for p in progress],
                "fired_at": [p.state.fired_at for p in progress],
            },
        )


class Checkpoints:
    """Opens checkpoints, and reads states."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._transactions = JointTransactions(database, outbox, Checkpoint)

    def begin(self, tenants: Iterable[UUID]) -> AbstractAsyncContextManager[Checkpoint]:
        """Open a transaction for these tenants; commit it, with its events, when the block ends."""
        return self._transactions.begin(tenants)

    async def states(
        self, wanted: Sequence[tuple[Rule, UUID]]
    ) -> Mapping[tuple[UUID, UUID], State]:
        """Return the states that were written, by rule and device; nothing for what never was."""
        with bound_to({rule.tenant_id for rule, _ in wanted}):
            async with self._database.connection() as connection:
                rows = await connection.execute(_STATES, _keys(wanted))
                return {
                    (row.rule_id, row.device_id): State(
                        row.last_at, row.last_ts, row.since, row.fired_at
                    )
                    for row in rows
                }


def _keys(wanted: Sequence[tuple[Rule, UUID]]) -> dict[str, list[UUID]]:
    return {
        "tenants": [rule.tenant_id for rule, _ in wanted],
        "ids": [rule.id for rule, _ in wanted],
        "devices": [device_id for _, device_id in wanted],
    }
