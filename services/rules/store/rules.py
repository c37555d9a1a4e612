"""Rules of one tenant, and the firings under way."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, delete, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import NotFound
from libs.common.severity import Severity
from services.rules.domain.rule import Condition, Definition, Kind, Rule
from services.rules.domain.threshold import Threshold
from services.rules.store.tables import RuleRow, RuleStateRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Rules:
    """The rules of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, rule: Rule) -> None:
        """Keep a new rule."""
        self._session.add(RuleRow(tenant_id=self._tenant_id, id=rule.id, **_columns(rule)))
        await self._session.flush()

    async def count(self) -> int:
        """Return how many rules there are."""
        query = select(func.count()).where(RuleRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, rule_id: UUID, *, lock: bool = False) -> Rule:
        """Return a rule. Raises NotFound.

        Locked, it cannot be evaluated until the transaction ends: a firing either comes before
        and is seen, or its rule is found changed.
        """
        return to_rule(await self._row(rule_id, lock=lock))

    async def page(
        self, limit: int, after: tuple[datetime, UUID] | None, device_id: UUID | None
    ) -> list[Rule]:
        """Return up to `limit` rules, oldest first, after the given (created_at, id)."""
        query = (
            select(RuleRow)
            .where(RuleRow.tenant_id == self._tenant_id)
            .order_by(RuleRow.created_at, RuleRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(RuleRow.created_at, RuleRow.id) > after)
        if device_id is not None:
            query = query.where(RuleRow.device_id == device_id)
        return [to_rule(row) for row in await self._session.scalars(query)]

    async def all(self) -> list[Rule]:
        """Return all rules, locked as by `get`."""
        return await self._locked(RuleRow.tenant_id == self._tenant_id)

    async def of_device(self, device_id: UUID) -> list[Rule]:
        """Return a device's rules, locked as by `get`."""
        return await self._locked(
            RuleRow.tenant_id == self._tenant_id, RuleRow.device_id == device_id
        )

    async def _locked(self, *where: ColumnElement[bool]) -> list[Rule]:
        query = select(RuleRow).where(*where).order_by(RuleRow.id).with_for_update()
        return [to_rule(row) for row in await self._session.scalars(query)]

    async def update(self, rule: Rule) -> None:
        """Save what may change of a rule. Raises NotFound."""
        row = await self._row(rule.id)
        for name, value in _columns(rule).items():
            setattr(row, name, value)
        await self._session.flush()

    async def remove(self, rule_id: UUID) -> None:
        """Remove a rule with its state. Raises NotFound."""
        await self._session.delete(await self._row(rule_id))
        await self._session.flush()

    async def firings(self, rule_id: UUID) -> list[tuple[UUID, int]]:
        """Return the firings under way: the device, and the µs since 1970 UTC of the point that fired."""
        rows = await self._session.execute(
            select(RuleStateRow.device_id, RuleStateRow.fired_at).where(
                RuleStateRow.tenant_id == self._tenant_id,
                RuleStateRow.rule_id == rule_id,
                RuleStateRow.fired_at.is_not(None),
            )
        )
        return [(device, (at - _EPOCH) // _MICROSECOND) for device, at in rows if at is not None]

    async def reset(self, rule_id: UUID, *, same_series: bool) -> None:
        """Let a rule begin anew; with the same series, after the points already looked at."""
        of_rule = (RuleStateRow.tenant_id == self._tenant_id, RuleStateRow.rule_id == rule_id)
        if same_series:
            await self._session.execute(
                update(RuleStateRow).where(*of_rule).values(since=None, fired_at=None)
            )
        else:
            await self._session.execute(delete(RuleStateRow).where(*of_rule))

    async def _row(self, rule_id: UUID, *, lock: bool = False) -> RuleRow:
        query = select(RuleRow).where(RuleRow.tenant_id == self._tenant_id, RuleRow.id == rule_id)
        if lock:
            query = query.with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no rule {rule_id}")
        return row


def _columns(rule: Rule) -> dict[str, object]:
    definition = rule.definition
    condition: dict[str, object] = msgspec.to_builtins(definition.condition)
    return {
        "name": definition.name,
        "type": definition.kind.value,
        "device_id": definition.device_id,
        "metric": definition.metric,
        "condition": condition,
        "hold": definition.hold,
        "severity": definition.severity.value,
        "enabled": rule.enabled,
        "version": rule.version,
        "created_at": rule.created_at,
        "updated_at": rule.updated_at,
    }


_CONDITIONS: dict[Kind, type[Condition]] = {Kind.THRESHOLD: Threshold}


def to_rule(row: RuleRow) -> Rule:
    """Return the rule that a row holds."""
    kind = Kind(row.type)
    return Rule(
        tenant_id=row.tenant_id,
        id=row.id,
        definition=Definition(
            name=row.name,
            kind=kind,
            device_id=row.device_id,
            metric=row.metric,
            condition=msgspec.convert(row.condition, _CONDITIONS[kind], strict=False),
            hold=row.hold,
            severity=Severity(row.severity),
        ),
        enabled=row.enabled,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
