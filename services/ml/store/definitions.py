"""What the workers must know across all tenants: the models at work.

Works as role `ml_engine`, which may read models and nothing else of a tenant.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import any_, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from services.ml.domain.model import Model
from services.ml.store.models import to_model
from services.ml.store.tables import ModelRow

AT_ONCE = 5_000
"""How many models are read by one statement."""


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
        found: list[Model] = []
        for start in range(0, len(model_ids), AT_ONCE):
            # One parameter, an array: a parameter for each id ends at 32,767 of them.
            ids = literal(list(model_ids[start : start + AT_ONCE]), ARRAY(PG_UUID))
            async with AsyncSession(self._engine.engine) as session:
                rows = await session.scalars(select(ModelRow).where(ModelRow.id == any_(ids)))
                found.extend(to_model(row) for row in rows)
        return found
