"""Alerts, their history and their notes."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, aliased

from libs.common.errors import NotFound
from libs.common.severity import Severity
from services.alerting.domain.alert import Alert, HistoryLine, How, Note, Standing, State, What
from services.alerting.domain.trigger import FiringRecord, SourceKind, Trigger, too_many_key
from services.alerting.store.tables import AlertRow, HistoryRow, NameRow, NoteRow

_Device = aliased(NameRow)
_Acknowledger = aliased(NameRow)
_Resolver = aliased(NameRow)

_Query = Select[AlertRow, str | None, str | None, str | None]
"""An alert with the names of its device, of who acknowledged and of who resolved it."""

_STANDING = text(
    """
    WITH present AS (
      SELECT * FROM alerting.alerts
      WHERE tenant_id = :tenant_id AND dedup_key = :key AND state <> 'resolved' FOR UPDATE
    )
    SELECT present.*, f.id AS firing_id, f.alert_id AS fired_into, f.triggered_at, f.cleared_at,
      n.gone
    FROM (SELECT) AS one
    LEFT JOIN present ON true
    LEFT JOIN alerting.firings f ON f.tenant_id = :tenant_id AND f.id = :firing_id
    LEFT JOIN alerting.names n ON n.tenant_id = :tenant_id AND n.id = :device_id
    """
)

_COLUMNS = [column.name for column in AlertRow.__table__.columns]
_CHANGING = [name for name in _COLUMNS if name not in {"tenant_id", "id"}]
_LINE = """
    INSERT INTO alerting.alert_history (tenant_id, alert_id, what, at, state, severity, by, detail)
    VALUES (:tenant_id, :id, :line_what, :line_at, :line_state, :line_severity, :line_by, :line_detail)
"""
_INSERT = (
    f"INSERT INTO alerting.alerts ({', '.join(_COLUMNS)})"  # noqa: S608 - put together from the table's columns
    f" VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
)
_UPDATE = (
    f"UPDATE alerting.alerts SET {', '.join(f'{name} = :{name}' for name in _CHANGING)}"  # noqa: S608 - as above
    " WHERE tenant_id = :tenant_id AND id = :id"
)
_ADD = text(f"WITH added AS ({_INSERT}) {_LINE}")
_CHANGE = text(_UPDATE)
_CHANGE_AND_TELL = text(f"WITH changed AS ({_UPDATE}) {_LINE}")


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

    async def standing(self, trigger: Trigger) -> Standing:
        """Return what a trigger meets; the alert that is open is locked until the transaction ends."""
        found = await self._session.execute(
            _STANDING,
            {
                "tenant_id": self._tenant_id,
                "key": trigger.dedup_key,
                "firing_id": trigger.firing.id if trigger.firing else None,
                "device_id": trigger.device_id,
            },
        )
        row = found.mappings().one()
        record = present = None
        if row["firing_id"] is not None:
            record = FiringRecord(
                alert_id=row["fired_into"],
                triggered_at=row["triggered_at"],
                cleared_at=row["cleared_at"],
            )
        if row["id"] is not None:
            present = _to_alert(AlertRow(**{name: row[name] for name in _COLUMNS}))
        return Standing(present, record, device_is_gone=bool(row["gone"]))

    async def add(self, alert: Alert, line: HistoryLine) -> None:
        """Keep a new alert and the beginning of its history. Fails if one with its key is open: see Firings.take_turn."""
        await self._session.execute(_ADD, {**_values_of(alert), **_line_of(line)})

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

    async def count_open_alarms(self, device_id: UUID) -> int:
        """Return how many alerts are open that the device itself raised, each for one alarm."""
        query = select(func.count()).where(
            AlertRow.tenant_id == self._tenant_id,
            AlertRow.device_id == device_id,
            AlertRow.source_kind == SourceKind.DEVICE.value,
            AlertRow.dedup_key != too_many_key(device_id),
            AlertRow.state != State.RESOLVED.value,
        )
        return await self._session.scalar(query) or 0

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

    async def update(self, alert: Alert, line: HistoryLine | None = None) -> None:
        """Save an alert that was locked before, with a line of its history if there is one."""
        if line is None:
            await self._session.execute(_CHANGE, _values_of(alert))
        else:
            values = {**_values_of(alert), **_line_of(line)}
            await self._session.execute(_CHANGE_AND_TELL, values)

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


def _line_of(line: HistoryLine) -> dict[str, object]:
    return {
        "line_what": line.what.value,
        "line_at": line.at,
        "line_state": line.state.value,
        "line_severity": line.severity.value,
        "line_by": line.by,
        "line_detail": line.detail,
    }


def _values_of(alert: Alert) -> dict[str, object]:
    return {
        "tenant_id": alert.tenant_id,
        "id": alert.id,
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
    row: AlertRow,
    device_name: str | None = None,
    acknowledger: str | None = None,
    resolver: str | None = None,
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
