"""One tenant's history, as retention may close it."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession


class History:
    """The historian, for the tenant that the transaction is bound to."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def close(self) -> None:
        """Forget the tenant's series, and let its points be erased as soon as may be."""
        await self._session.execute(text("SELECT historian.close_tenants()"))
