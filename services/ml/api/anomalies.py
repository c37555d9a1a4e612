"""Anomalies over HTTP."""

import math
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field

from libs.common.errors import Malformed, NotFound
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Moment, Out
from services.ml.api.deps import CanRead, InTransaction
from services.ml.domain.excursion import Anomaly

router = APIRouter(prefix="/api/v1/ml/anomalies", tags=["ml"])


class AnomalyOut(Out):
    """Points that did not look like the others: from the first of them until it was calm again."""

    id: UUID
    model_id: UUID
    model_version: int
    device_id: UUID
    metric: Annotated[str, Field(examples=["temperature"])]
    ts: Annotated[datetime, Field(description="When it began: the time of the first point.")]
    value: Annotated[float, Field(description="That point's value.", examples=[118.4])]
    expected: Annotated[float, Field(examples=[71.3])]
    z: Annotated[float | None, Field(description="Typical deviations from the median; null: beyond measure.", examples=[9.2])]  # fmt: skip
    score: Annotated[float, Field(description="0 to 1; 0.5 at the threshold.", examples=[0.93])]
    peak_value: Annotated[float, Field(examples=[121.0])]
    peak_z: Annotated[float | None, Field(examples=[9.8])]
    points: Annotated[int, Field(description="How many points passed the threshold, so far.")]
    ended_at: Annotated[datetime | None, Field(description="Null while it lasts.")]
    detected_at: datetime


class _Position(msgspec.Struct):
    ts: datetime
    id: UUID


@router.get("", responses=problems(Malformed))
async def list_anomalies(
    who: CanRead,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    model_id: Annotated[UUID | None, Query()] = None,
    device_id: Annotated[UUID | None, Query()] = None,
    start: Annotated[Moment | None, Query(alias="from", description="Began then or later.")] = None,
    end: Annotated[Moment | None, Query(alias="to", description="Began before.")] = None,
) -> Page[AnomalyOut]:
    """List the anomalies, newest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    before = (position.ts, position.id) if position else None
    anomalies = await store.anomalies.page(
        limit + 1, before, model_id=model_id, device_id=device_id, start=start, end=end
    )
    more = len(anomalies) > limit
    anomalies = anomalies[:limit]
    return Page(
        items=[_to_out(anomaly) for anomaly in anomalies],
        next_cursor=encode_cursor(_Position(anomalies[-1].ts, anomalies[-1].id)) if more else None,
    )


@router.get("/{anomaly_id}", responses=problems(NotFound))
async def get_anomaly(anomaly_id: UUID, who: CanRead, store: InTransaction) -> AnomalyOut:
    """Return one anomaly."""
    return _to_out(await store.anomalies.get(anomaly_id))


def _to_out(anomaly: Anomaly) -> AnomalyOut:
    return AnomalyOut(
        id=anomaly.id,
        model_id=anomaly.model_id,
        model_version=anomaly.model_version,
        device_id=anomaly.device_id,
        metric=anomaly.metric,
        ts=anomaly.ts,
        value=anomaly.value,
        expected=anomaly.expected,
        z=_finite(anomaly.z),
        score=anomaly.score,
        peak_value=anomaly.peak_value,
        peak_z=_finite(anomaly.peak_z),
        points=anomaly.points,
        ended_at=anomaly.ended_at,
        detected_at=anomaly.detected_at,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
