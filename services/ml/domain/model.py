"""A model: what it watches, what it has learnt, and when a value is an anomaly to it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.ml.domain.robust_zscore import RobustZScore


class ModelType(StrEnum):
    """How a model learns."""

    ROBUST_ZSCORE = "robust_zscore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A tenant's model of one series.

    `series` is the historian's number. An excursion ends after `calm_points` points in a row that
    do not pass the threshold. Each training raises the version.
    """

    tenant_id: UUID
    id: UUID
    name: str
    type: ModelType
    device_id: UUID
    metric: str
    series: int
    threshold: float
    min_points: int
    calm_points: int
    learnt: RobustZScore
    trained_from: datetime
    trained_to: datetime
    trained_at: datetime
    version: int
    created_at: datetime
