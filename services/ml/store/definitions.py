"""What the workers must know across all tenants: the models at work.

Works as role `ml_engine`, which may read models and nothing else of a tenant.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from services.ml.domain.model import Model
from services.ml.store.models import to_model
from services.ml.store.tables import ModelRow


class Definitions:
    """Reads models across tenants."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def versions(self) -> dict[UUID, int]:
        """Return the versions of all models of all tenants."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(select(ModelRow.id, ModelRow.version))
            return {row.id: row.version for row in rows}

    async def models(self, model_ids: Sequence[UUID]) -> list[Model]:
        """Return those of the models that exist."""
        async with AsyncSession(self._engine.engine) as session:
            rows = await session.scalars(select(ModelRow).where(ModelRow.id.in_(model_ids)))
            return [to_model(row) for row in rows]
