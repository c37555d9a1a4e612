"""What goes on until it is cleared."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.alerting.domain.trigger import Firing, FiringRecord
from services.alerting.store.tables import FiringRow


class Firings:
    """The firings of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def take_turn(self, dedup_key: str) -> None:
        """Wait until nobody else works on what has this key, until the transaction ends.

        A trigger and its clearing may come at once, in either order; each must see the other.
        """
        await self._session.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
            {"key": f"alerting:{self._tenant_id}:{dedup_key}"},
        )

    async def find(self, firing_id: UUID) -> FiringRecord | None:
        """Return what is known of a firing."""
        found = await self._session.execute(
            select(FiringRow.alert_id, FiringRow.triggered_at, FiringRow.cleared_at).where(
                FiringRow.tenant_id == self._tenant_id, FiringRow.id == firing_id
            )
        )
        row = found.one_or_none()
        if row is None:
            return None
        alert_id, triggered_at, cleared_at = row
        return FiringRecord(alert_id=alert_id, triggered_at=triggered_at, cleared_at=cleared_at)

    async def note_trigger(self, firing: Firing, alert_id: UUID, at: datetime) -> None:
        """Note that the firing is part of an alert, and since when it is on."""
        await self._note(firing, alert_id=alert_id, triggered_at=at)

    async def note_clearing(self, firing: Firing, at: datetime) -> None:
        """Note that the firing is over, whether or not we ever heard of it."""
        await self._note(firing, cleared_at=at)

    async def clear_all_of(self, alert_id: UUID, at: datetime) -> None:
        """Note that all firings of an alert are over."""
        await self._session.execute(
            update(FiringRow)
            .where(
                FiringRow.tenant_id == self._tenant_id,
                FiringRow.alert_id == alert_id,
                FiringRow.cleared_at.is_(None) | FiringRow.recurs,
            )
            .values(cleared_at=func.greatest(FiringRow.cleared_at, at))
        )

    async def is_any_on(self, alert_id: UUID) -> bool:
        """Whether one of the alert's firings goes on."""
        found = await self._session.scalar(
            select(FiringRow.id)
            .where(
                FiringRow.tenant_id == self._tenant_id,
                FiringRow.alert_id == alert_id,
                FiringRow.cleared_at.is_(None)
                | (FiringRow.recurs & (FiringRow.cleared_at < FiringRow.triggered_at)),
            )
            .limit(1)
        )
        return found is not None

    async def _note(
        self,
        firing: Firing,
        *,
        alert_id: UUID | None = None,
        triggered_at: datetime | None = None,
        cleared_at: datetime | None = None,
    ) -> None:
        noted = insert(FiringRow).values(
            tenant_id=self._tenant_id,
            id=firing.id,
            recurs=firing.recurs,
            alert_id=alert_id,
            triggered_at=triggered_at,
            cleared_at=cleared_at,
        )
        excluded = noted.excluded
        await self._session.execute(
            noted.on_conflict_do_update(
                index_elements=["tenant_id", "id"],
                set_={
                    "alert_id": func.coalesce(excluded.alert_id, FiringRow.alert_id),
                    # NULLs are passed over by greatest().
                    "triggered_at": func.greatest(FiringRow.triggered_at, excluded.triggered_at),
                    "cleared_at": func.greatest(FiringRow.cleared_at, excluded.cleared_at),
                },
            )
        )
