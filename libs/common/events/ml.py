"""What ml says: a point that does not look like the others, and a model that has changed."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event


class AnomalyDetected(Event, frozen=True, kw_only=True):
    """A model found a point unusual.

    `score` runs from 0 (as always) to 1 (never seen); `expected` is what the model would have
    believed, in the metric's own unit, if it can say so. `at` is when it was found, `ts` the time
    of the point. It is said once for an excursion, however many points that has.
    """

    type: ClassVar[str] = "anomaly.detected.v1"
    source: ClassVar[str] = "ml"
    model_id: UUID
    anomaly_id: UUID | None = None
    device_id: UUID
    metric: str
    score: float
    value: float | None = None
    expected: float | None = None
    ts: datetime


class ModelChanged(Event, frozen=True, kw_only=True):
    """A model was created, trained anew or deleted, as `change` says: created, trained, deleted."""

    type: ClassVar[str] = "model.changed.v1"
    source: ClassVar[str] = "ml"
    model_id: UUID
    change: str
