"""Whose device it is, where a broker has vouched for the device and nobody has named the tenant."""

from uuid import UUID

from sqlalchemy import text

from libs.common.db.engine import Database


class DeviceTenants:
    """Looks devices up across tenants, by their id alone (role `ingest_engine`)."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def tenant_of(self, device_id: UUID) -> UUID | None:
        """Return the device's tenant, None if there is no such device."""
        async with self._engine.connection() as connection:
            found: UUID | None = await connection.scalar(
                text("SELECT ingest.tenant_of_device(:device)"), {"device": device_id}
            )
            return found
