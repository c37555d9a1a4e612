"""What devices and users are called, as their own services say it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.alerting.store.tables import NameRow

Kind = Literal["device", "user"]


class Names:
    """The names that matter to one tenant. Words may come late or twice: the newest counts."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def learn(self, kind: Kind, owner: UUID, name: str, at: datetime) -> None:
        """Note what someone or something is called."""
        await self._say(kind, owner, name.replace("\x00", ""), at, gone=False)

    async def mark_gone(self, kind: Kind, owner: UUID, at: datetime) -> None:
        """Note that what had the name is no more; what is told of it keeps the name."""
        await self._say(kind, owner, await self.find(owner), at, gone=True)

    async def erase(self, kind: Kind, owner: UUID, at: datetime) -> None:
        """Note that who had the name is gone, and forget the name."""
        await self._say(kind, owner, None, at, gone=True)

    async def find(self, owner: UUID) -> str | None:
        """Return a name, if it is known."""
        name: str | None = await self._session.scalar(
            select(NameRow.name).where(NameRow.tenant_id == self._tenant_id, NameRow.id == owner)
        )
        return name

    async def _say(
        self, kind: Kind, owner: UUID, name: str | None, at: datetime, *, gone: bool
    ) -> None:
        said = insert(NameRow).values(
            tenant_id=self._tenant_id, id=owner, kind=kind, name=name, changed_at=at, gone=gone
        )
        new = said.excluded
        await self._session.execute(
            said.on_conflict_do_update(
                index_elements=["tenant_id", "id"],
                set_={
                    "name": new.name,
                    "changed_at": func.greatest(NameRow.changed_at, new.changed_at),
                    "gone": new.gone,
                },
                where=new.changed_at >= NameRow.changed_at,
            )
        )
