"""Alerts, their history and their notes."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, aliased

from libs.common.errors import NotFound
from libs.common.severity import Severity
from services.alerting.domain.alert import Alert, HistoryLine, How, Note, State, What
from services.alerting.domain.trigger import SourceKind
from services.alerting.store.tables import AlertRow, HistoryRow, NameRow, NoteRow

_Device = aliased(NameRow)
_Acknowledger = aliased(NameRow)
_Resolver = aliased(NameRow)

_Query = Select[AlertRow, str | None, str | None, str | None]
"""An alert with the names of its device, of who acknowledged and of who resolved it."""


@dataclass(frozen=True, slots=True)
class AlertFilter:
    """Which alerts are wanted; what is empty or None does not matter."""

    states: Collection[State] = ()
    severities: Collection[Severity] = ()
    device_id: UUID | None = None


class Alerts:
    """The alerts of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, alert: Alert) -> None:
        """Keep a new alert. Fails if one with the same key is open: see Firings.take_turn."""
        self._session.add(AlertRow(tenant_id=self._tenant_id, id=alert.id, **_values_of(alert)))
        await self._session.flush()

    async def get(self, alert_id: UUID, *, lock: bool = False) -> Alert:
        """Return an alert, locked until the transaction ends if asked. Raises NotFound."""
        query = self._query().where(AlertRow.id == alert_id)
        found = await self._one(query, lock=lock)
        if found is None:
            raise NotFound(f"there is no alert {alert_id}")
        return found

    async def find_open(self, dedup_key: str) -> Alert | None:
        """Return the open alert with this key, locked until the transaction ends."""
        query = self._query().where(
            AlertRow.dedup_key == dedup_key, AlertRow.state != State.RESOLVED.value
        )
        return await self._one(query, lock=True)

    async def open_keys_of_device(self, device_id: UUID) -> list[str]:
        """Return the keys of all open alerts about a device."""
        query = select(AlertRow.dedup_key).where(
            AlertRow.tenant_id == self._tenant_id,
            AlertRow.device_id == device_id,
            AlertRow.state != State.RESOLVED.value,
        )
        return list(await self._session.scalars(query.order_by(AlertRow.dedup_key)))

    async def page(
        self, limit: int, before: tuple[datetime, UUID] | None, wanted: AlertFilter
    ) -> list[Alert]:
        """Return up to `limit` alerts, newest first, before the given (opened_at, id)."""
        query = self._query().order_by(AlertRow.opened_at.desc(), AlertRow.id.desc()).limit(limit)
        if before is not None:
            query = query.where(tuple_(AlertRow.opened_at, AlertRow.id) < before)
        if wanted.states:
            query = query.where(AlertRow.state.in_([state.value for state in wanted.states]))
            if State.RESOLVED not in wanted.states:
                # Said once more as the index of open alerts says it.
                query = query.where(AlertRow.state != State.RESOLVED.value)
        if wanted.severities:
            query = query.where(AlertRow.severity.in_([s.value for s in wanted.severities]))
        if wanted.device_id is not None:
            query = query.where(AlertRow.device_id == wanted.device_id)
        return [_to_alert(*row) for row in await self._session.execute(query)]

    async def update(self, alert: Alert) -> None:
        """Save an alert that was locked before."""
        await self._session.execute(
            update(AlertRow)
            .where(AlertRow.tenant_id == self._tenant_id, AlertRow.id == alert.id)
            .values(**_values_of(alert))
            .execution_options(synchronize_session=False)
        )

    async def write_history(self, alert_id: UUID, line: HistoryLine) -> None:
        """Add a line to an alert's history."""
        self._session.add(
            HistoryRow(
                tenant_id=self._tenant_id,
                alert_id=alert_id,
                what=line.what.value,
                at=line.at,
                state=line.state.value,
                severity=line.severity.value,
                by=line.by,
                detail=line.detail,
            )
        )
        await self._session.flush()

    async def history(self, alert_id: UUID, limit: int, after: int) -> list[HistoryLine]:
        """Return up to `limit` lines, oldest first, after the place `after` (0: from the start)."""
        query = (
            select(HistoryRow, NameRow.name)
            .outerjoin(NameRow, _named(NameRow, HistoryRow.tenant_id, HistoryRow.by))
            .where(
                HistoryRow.tenant_id == self._tenant_id,
                HistoryRow.alert_id == alert_id,
                HistoryRow.seq > after,
            )
            .order_by(HistoryRow.seq)
            .limit(limit)
        )
        return [
            HistoryLine(
                what=What(row.what),
                at=row.at,
                state=State(row.state),
                severity=Severity(row.severity),
                by=row.by,
                by_name=name,
                detail=row.detail,
                seq=row.seq,
            )
            for row, name in await self._session.execute(query)
        ]

    async def add_note(self, alert_id: UUID, note: Note) -> None:
        """Keep a note to an alert."""
        self._session.add(
            NoteRow(
                tenant_id=self._tenant_id,
                id=note.id,
                alert_id=alert_id,
                at=note.at,
                by=note.by,
                text=note.text,
            )
        )
        await self._session.flush()

    async def notes(self, alert_id: UUID, limit: int, after: int) -> list[Note]:
        """Return up to `limit` notes, oldest first, after the place `after` (0: from the start)."""
        query = (
            select(NoteRow, NameRow.name)
            .outerjoin(NameRow, _named(NameRow, NoteRow.tenant_id, NoteRow.by))
            .where(
                NoteRow.tenant_id == self._tenant_id,
                NoteRow.alert_id == alert_id,
                NoteRow.seq > after,
            )
            .order_by(NoteRow.seq)
            .limit(limit)
        )
        return [
            Note(id=row.id, at=row.at, by=row.by, text=row.text, by_name=name, seq=row.seq)
            for row, name in await self._session.execute(query)
        ]

    def _query(self) -> _Query:
        return (
            select(AlertRow, _Device.name, _Acknowledger.name, _Resolver.name)
            .outerjoin(_Device, _named(_Device, AlertRow.tenant_id, AlertRow.device_id))
            .outerjoin(
                _Acknowledger, _named(_Acknowledger, AlertRow.tenant_id, AlertRow.acknowledged_by)
            )
            .outerjoin(_Resolver, _named(_Resolver, AlertRow.tenant_id, AlertRow.resolved_by))
            .where(AlertRow.tenant_id == self._tenant_id)
            # A row read before in this transaction may have been changed by `update` since.
            .execution_options(populate_existing=True)
        )

    async def _one(self, query: _Query, *, lock: bool) -> Alert | None:
        if lock:
            query = query.with_for_update(of=AlertRow)
        found = (await self._session.execute(query)).one_or_none()
        return _to_alert(*found) if found is not None else None


def _named(
    names: type[NameRow],
    tenant_id: InstrumentedAttribute[UUID],
    owner: InstrumentedAttribute[UUID | None] | InstrumentedAttribute[UUID],
) -> ColumnElement[bool]:
    return and_(names.tenant_id == tenant_id, names.id == owner)


def _values_of(alert: Alert) -> dict[str, object]:
    return {
        "dedup_key": alert.dedup_key,
        "title": alert.title,
        "message": alert.message,
        "severity": alert.severity.value,
        "state": alert.state.value,
        "source_kind": alert.source_kind.value,
        "source_id": alert.source_id,
        "device_id": alert.device_id,
        "metric": alert.metric,
        "value": alert.value,
        "condition": alert.condition,
        "count": alert.count,
        "opened_at": alert.opened_at,
        "last_seen_at": alert.last_seen_at,
        "acknowledged_at": alert.acknowledged_at,
        "acknowledged_by": alert.acknowledged_by,
        "resolved_at": alert.resolved_at,
        "resolved_by": alert.resolved_by,
        "resolved_how": alert.resolved_how.value if alert.resolved_how else None,
        "version": alert.version,
    }


def _to_alert(
    row: AlertRow, device_name: str | None, acknowledger: str | None, resolver: str | None
) -> Alert:
    return Alert(
        id=row.id,
        tenant_id=row.tenant_id,
        dedup_key=row.dedup_key,
        title=row.title,
        message=row.message,
        severity=Severity(row.severity),
        state=State(row.state),
        source_kind=SourceKind(row.source_kind),
        source_id=row.source_id,
        device_id=row.device_id,
        device_name=device_name,
        metric=row.metric,
        value=row.value,
        condition=row.condition,
        count=row.count,
        opened_at=row.opened_at,
        last_seen_at=row.last_seen_at,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
        acknowledged_by_name=acknowledger,
        resolved_at=row.resolved_at,
        resolved_by=row.resolved_by,
        resolved_by_name=resolver,
        resolved_how=How(row.resolved_how) if row.resolved_how else None,
        version=row.version,
    )
