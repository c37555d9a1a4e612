"""How tenants look."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from services.tenancy.domain.branding import Branding
from services.tenancy.store.tables import BrandingRow


class Brandings:
    """The look of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def get(self) -> Branding:
        """Return the look; the installation's, if none was ever set."""
        row = await self._session.scalar(
            select(BrandingRow).where(BrandingRow.tenant_id == self._tenant_id)
        )
        if row is None:
            return Branding()
        return Branding(
            product_name=row.product_name,
            colour_on_light=row.colour_on_light,
            colour_on_dark=row.colour_on_dark,
            sender_name=row.sender_name,
            email_footer=row.email_footer,
        )

    async def put(self, branding: Branding, *, at: datetime) -> None:
        """Set the look."""
        values = {
            "product_name": branding.product_name,
            "colour_on_light": branding.colour_on_light,
            "colour_on_dark": branding.colour_on_dark,
            "sender_name": branding.sender_name,
            "email_footer": branding.email_footer,
            "updated_at": at,
        }
        await self._session.execute(
            insert(BrandingRow)
            .values(tenant_id=self._tenant_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id"], set_=values)
        )


async def branding_of_slug(engine: Database, slug: str) -> Branding:
    """Return what everybody may know of a tenant's look; the installation's for a slug of nobody's."""
    async with engine.connection() as connection:
        row = (
            await connection.execute(
                text("SELECT * FROM tenancy.branding_of_slug(:slug)"), {"slug": slug}
            )
        ).one_or_none()
    return Branding() if row is None else Branding(**row._mapping)
