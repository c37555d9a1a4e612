"""The tables of ml, as its migrations made them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Mapped, mapped_column

from libs.common.db.tables import Row, TenantOwned, schema_metadata


class MlRow(Row):
    """The base of the rows of ml."""

    __abstract__ = True
    metadata = schema_metadata("ml")


class ModelRow(TenantOwned, MlRow):
    """A model."""

    __tablename__ = "models"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    type: Mapped[str]
    device_id: Mapped[UUID]
    metric: Mapped[str]
    series: Mapped[int]
    threshold: Mapped[float]
    min_points: Mapped[int]
    calm_points: Mapped[int]
    median: Mapped[float]
    mad: Mapped[float]
    n: Mapped[int]
    trained_from: Mapped[datetime]
    trained_to: Mapped[datetime]
    trained_at: Mapped[datetime]
    version: Mapped[int]
    created_at: Mapped[datetime]


class ModelStateRow(TenantOwned, MlRow):
    """How far a model has got."""

    __tablename__ = "model_state"

    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    last_ts: Mapped[datetime | None]


class AnomalyRow(TenantOwned, MlRow):
    """An excursion."""

    __tablename__ = "anomalies"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID]
    model_version: Mapped[int]
    device_id: Mapped[UUID]
    metric: Mapped[str]
    ts: Mapped[datetime]
    value: Mapped[float]
    expected: Mapped[float]
    z: Mapped[float]
    score: Mapped[float]
    peak_value: Mapped[float]
    peak_z: Mapped[float]
    points: Mapped[int]
    calm: Mapped[int]
    ended_at: Mapped[datetime | None]
    detected_at: Mapped[datetime]
