"""One tenant's sites whose scripts may use the API."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.store.tables import CorsOriginRow


class CorsOrigins:
    """The origins of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def all(self) -> list[str]:
        """Return the origins, sorted."""
        query = (
            select(CorsOriginRow.origin)
            .where(CorsOriginRow.tenant_id == self._tenant_id)
            .order_by(CorsOriginRow.origin)
        )
        return list(await self._session.scalars(query))

    async def replace(self, origins: Collection[str], at: datetime) -> None:
        """Let these be the tenant's origins, and no others."""
        await self._session.execute(
            delete(CorsOriginRow).where(CorsOriginRow.tenant_id == self._tenant_id)
        )
        for origin in origins:
            self._session.add(CorsOriginRow(tenant_id=self._tenant_id, origin=origin, added_at=at))
        await self._session.flush()
