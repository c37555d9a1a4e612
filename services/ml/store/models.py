"""Models of one tenant."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.ml.domain.model import Model, ModelType
from services.ml.domain.robust_zscore import RobustZScore
from services.ml.store.tables import ModelRow, ModelStateRow

_UNIQUE_VIOLATION = "23505"


class Models:
    """The models of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, model: Model) -> None:
        """Keep a new model. Raises Conflict if its name is taken."""
        self._session.add(ModelRow(tenant_id=self._tenant_id, id=model.id, **_columns(model)))
        try:
            await self._session.flush()
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION:
                raise Conflict(f"there is a model named {model.name!r}") from error
            raise
        self._session.add(ModelStateRow(tenant_id=self._tenant_id, model_id=model.id))
        await self._session.flush()

    async def count(self) -> int:
        """Return how many models there are."""
        query = select(func.count()).where(ModelRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, model_id: UUID, *, lock: bool = False) -> Model:
        """Return a model. Raises NotFound.

        Locked, no points are scored by it until the transaction ends.
        """
        return to_model(await self._row(model_id, lock=lock))

    async def page(
        self, limit: int, after: tuple[datetime, UUID] | None, device_id: UUID | None
    ) -> list[Model]:
        """Return up to `limit` models, oldest first, after the given (created_at, id)."""
        query = (
            select(ModelRow)
            .where(ModelRow.tenant_id == self._tenant_id)
            .order_by(ModelRow.created_at, ModelRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(ModelRow.created_at, ModelRow.id) > after)
        if device_id is not None:
            query = query.where(ModelRow.device_id == device_id)
        return [to_model(row) for row in await self._session.scalars(query)]

    async def all(self) -> list[Model]:
        """Return all models, locked as by `get`."""
        return await self._locked(ModelRow.tenant_id == self._tenant_id)

    async def of_device(self, device_id: UUID) -> list[Model]:
        """Return a device's models, locked as by `get`."""
        return await self._locked(
            ModelRow.tenant_id == self._tenant_id, ModelRow.device_id == device_id
        )

    async def _locked(self, *where: ColumnElement[bool]) -> list[Model]:
        query = select(ModelRow).where(*where).order_by(ModelRow.id).with_for_update()
        return [to_model(row) for row in await self._session.scalars(query)]

    async def update(self, model: Model) -> None:
        """Save what may change of a model. Raises NotFound."""
        row = await self._row(model.id)
        for name, value in _columns(model).items():
            setattr(row, name, value)
        await self._session.flush()

    async def remove(self, model_id: UUID) -> None:
        """Remove a model; its anomalies stay. Raises NotFound."""
        await self._session.delete(await self._row(model_id))
        await self._session.flush()

    async def _row(self, model_id: UUID, *, lock: bool = False) -> ModelRow:
        query = select(ModelRow).where(
            ModelRow.tenant_id == self._tenant_id, ModelRow.id == model_id
        )
        if lock:
            query = query.with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no model {model_id}")
        return row


def _columns(model: Model) -> dict[str, object]:
    return {
        "name": model.name,
        "type": model.type.value,
        "device_id": model.device_id,
        "metric": model.metric,
        "series": model.series,
        "threshold": model.threshold,
        "min_points": model.min_points,
        "calm_points": model.calm_points,
        "median": model.learnt.median,
        "mad": model.learnt.mad,
        "n": model.learnt.n,
        "trained_from": model.trained_from,
        "trained_to": model.trained_to,
        "trained_at": model.trained_at,
        "version": model.version,
        "created_at": model.created_at,
    }


def to_model(row: ModelRow) -> Model:
    """Return the model that a row holds."""
    return Model(
        tenant_id=row.tenant_id,
        id=row.id,
        name=row.name,
        type=ModelType(row.type),
        device_id=row.device_id,
        metric=row.metric,
        series=row.series,
        threshold=row.threshold,
        min_points=row.min_points,
        calm_points=row.calm_points,
        learnt=RobustZScore(row.median, row.mad, row.n),
        trained_from=row.trained_from,
        trained_to=row.trained_to,
        trained_at=row.trained_at,
        version=row.version,
        created_at=row.created_at,
    )
