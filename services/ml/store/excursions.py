"""The door of telemetry: one transaction for the models concerned, of all tenants of a batch."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import text

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.db.transactions import Joint, JointTransactions
from services.ml.domain.excursion import Excursion, State, anomaly_id
from services.ml.domain.model import Model
from services.ml.domain.robust_zscore import score_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_WANTED = """
    unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[])) AS w(tenant_id, model_id)
"""

_LOCK = text(
    f"""
    SELECT m.id, m.version, coalesce(s.last_at, s.last_ts) AS last_at, s.last_ts
    FROM {_WANTED}
    JOIN ml.models m ON m.tenant_id = w.tenant_id AND m.id = w.model_id
    JOIN ml.model_state s ON s.tenant_id = w.tenant_id AND s.model_id = w.model_id
    ORDER BY m.tenant_id, m.id FOR SHARE OF m FOR UPDATE OF s
    """  # noqa: S608 - put together from constants
)

# Read after the lock, in a statement of its own: one that waits sees other tables as they were before.
_OPEN = text(
    f"""
    SELECT a.model_id, a.ts, a.value, a.z, a.peak_value, a.peak_z, a.points, a.calm
    FROM {_WANTED} JOIN ml.anomalies a USING (tenant_id, model_id) WHERE a.ended_at IS NULL
    """  # noqa: S608 - as above
)

_SAVE_STATES = text(
    """
    UPDATE ml.model_state s SET last_at = w.last_at, last_ts = w.last_ts
    FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:last_at AS timestamptz[]),
                cast(:last_ts AS timestamptz[]))
      AS w(tenant_id, model_id, last_at, last_ts)
    WHERE s.tenant_id = w.tenant_id AND s.model_id = w.model_id
    """
)

_SAVE_ANOMALY = text(
    """
    INSERT INTO ml.anomalies (tenant_id, id, model_id, model_version, device_id, metric, ts, value,
      expected, z, score, peak_value, peak_z, points, calm, ended_at, detected_at)
    VALUES (:tenant_id, :id, :model_id, :model_version, :device_id, :metric, :ts, :value,
      :expected, :z, :score, :peak_value, :peak_z, :points, :calm, :ended_at, :detected_at)
    ON CONFLICT (tenant_id, model_id, ts) DO UPDATE SET peak_value = excluded.peak_value,
      peak_z = excluded.peak_z, points = excluded.points, calm = excluded.calm,
      ended_at = excluded.ended_at
    """
)


@dataclass(frozen=True, slots=True)
class Progress:
    """A model, how far it has got, and the excursions that changed on the way."""

    model: Model
    state: State
    touched: Sequence[Excursion]


class Checkpoint(Joint):
    """An open transaction of several tenants, in which states are written and events said."""

    async def states(self, models: Iterable[Model]) -> dict[UUID, State]:
        """Return how far the models have got, locked; those that have changed are missing."""
        wanted = {model.id: model for model in models}
        keys = {
            "tenants": [model.tenant_id for model in wanted.values()],
            "ids": list(wanted),
        }
        rows = (await self.connection.execute(_LOCK, keys)).all()
        under_way = {
            row.model_id: Excursion(
                _as_us(row.ts), row.value, row.z, row.peak_value, row.peak_z, row.points, row.calm
            )
            for row in await self.connection.execute(_OPEN, keys)
        }
        return {
            row.id: State(
                _as_us(row.last_at) if row.last_at else None,
                _as_us(row.last_ts) if row.last_ts else None,
                under_way.get(row.id),
            )
            for row in rows
            if row.version == wanted[row.id].version
        }

    async def save(self, progress: Sequence[Progress], *, now: datetime) -> None:
        """Write states and anomalies in place of older ones."""
        await self.connection.execute(
            _SAVE_STATES,
            {
                "tenants": [p.model.tenant_id for p in progress],
                "ids": [p.model.id for p in progress],
                "last_at": [_as_time(p.state.last_at) for p in progress],
                "last_ts": [_as_time(p.state.last_ts) for p in progress],
            },
        )
        anomalies = [_columns(p.model, e, now) for p in progress for e in p.touched]
        if anomalies:
            await self.connection.execute(_SAVE_ANOMALY, anomalies)


class Excursions:
    """Opens checkpoints."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._transactions = JointTransactions(database, outbox, Checkpoint)

    def begin(self, tenants: Iterable[UUID]) -> AbstractAsyncContextManager[Checkpoint]:
        """Open a transaction for these tenants; commit it, with its events, when the block ends."""
        return self._transactions.begin(tenants)


def _columns(model: Model, excursion: Excursion, now: datetime) -> dict[str, object]:
    return {
        "tenant_id": model.tenant_id,
        "id": anomaly_id(model.id, excursion.began_at),
        "model_id": model.id,
        "model_version": model.version,
        "device_id": model.device_id,
        "metric": model.metric,
        "ts": _as_time(excursion.began_at),
        "value": excursion.value,
        "expected": model.learnt.median,
        "z": excursion.z,
        "score": score_of(excursion.z, model.threshold),
        "peak_value": excursion.peak_value,
        "peak_z": excursion.peak_z,
        "points": excursion.points,
        "calm": excursion.calm,
        "ended_at": _as_time(excursion.ended_at),
        "detected_at": now,
    }


def _as_us(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _as_time(us: int | None) -> datetime | None:
    return None if us is None else _EPOCH + us * _MICROSECOND
