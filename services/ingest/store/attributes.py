"""Attributes of devices."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.ingest.domain.attribute import Scope
from services.ingest.store.many import insert_many
from services.ingest.store.tables import AttributesRow


class Attributes:
    """The attributes of one tenant's devices."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def get(self, device_id: UUID, scope: Scope) -> dict[str, Any]:
        """Return a device's attributes of a scope."""
        found = await self._session.scalar(
            select(AttributesRow.attributes).where(
                AttributesRow.tenant_id == self._tenant_id,
                AttributesRow.device_id == device_id,
                AttributesRow.scope == scope,
            )
        )
        return found or {}

    async def of_devices(self, device_ids: list[UUID], scope: Scope) -> dict[UUID, dict[str, Any]]:
        """Return the attributes of a scope of those of the devices that have some."""
        rows = await self._session.execute(
            select(AttributesRow.device_id, AttributesRow.attributes).where(
                AttributesRow.tenant_id == self._tenant_id,
                AttributesRow.device_id.in_(device_ids),
                AttributesRow.scope == scope,
            )
        )
        return {row.device_id: row.attributes for row in rows}

    async def set(
        self, device_id: UUID, scope: Scope, attributes: dict[str, Any], at: datetime
    ) -> None:
        """Replace a device's attributes of a scope."""
        values = {"attributes": attributes, "updated_at": at}
        await self._session.execute(
            insert(AttributesRow)
            .values(tenant_id=self._tenant_id, device_id=device_id, scope=scope, **values)
            .on_conflict_do_update(index_elements=["tenant_id", "device_id", "scope"], set_=values)
        )

    async def add_many(
        self, attributes: Mapping[UUID, dict[str, Any]], scope: Scope, at: datetime
    ) -> None:
        """Set the attributes of a scope of devices that have none."""
        await insert_many(
            self._session,
            "ingest.device_attributes",
            [
                {
                    "tenant_id": self._tenant_id,
                    "device_id": device_id,
                    "scope": scope,
                    "attributes": values,
                    "updated_at": at,
                }
                for device_id, values in attributes.items()
            ],
        )
