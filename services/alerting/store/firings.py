"""What goes on until it is cleared."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.alerting.domain.trigger import Firing, FiringRecord
from services.alerting.store.tables import FiringRow

# NULLs are passed over by greatest().
_NOTE = text(
    """
    INSERT INTO alerting.firings AS known (tenant_id, id, recurs, alert_id, triggered_at, cleared_at)
    VALUES (:tenant_id, :id, :recurs, :alert_id, :triggered_at, :cleared_at)
    ON CONFLICT (tenant_id, id) DO UPDATE
    SET alert_id = coalesce(excluded.alert_id, known.alert_id),
        triggered_at = greatest(known.triggered_at, excluded.triggered_at),
        cleared_at = greatest(known.cleared_at, excluded.cleared_at)
    RETURNING alert_id, triggered_at, cleared_at
    """
)


class Firings:
    """The firings of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._has_turn = False

    async def take_turn(self) -> None:
        """Wait until nobody else raises or clears the tenant's alerts, until the transaction ends.

        A trigger and its clearing may come at once, in either order; each must see the other. (One
        turn for all: transactions with many triggers would wait for each other in a circle.)
        """
        if not self._has_turn:
            await self._session.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:turn, 0))"),
                {"turn": f"alerting:{self._tenant_id}"},
            )
            self._has_turn = True

    async def note_trigger(self, firing: Firing, alert_id: UUID, at: datetime) -> None:
        """Note that the firing is part of an alert, and since when it is on."""
        await self._note(firing, alert_id=alert_id, triggered_at=at)

    async def note_clearing(self, firing: Firing, at: datetime) -> FiringRecord:
        """Note that the firing is over; return what is known of it, if only that."""
        return await self._note(firing, cleared_at=at)

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
    ) -> FiringRecord:
        noted = await self._session.execute(
            _NOTE,
            {
                "tenant_id": self._tenant_id,
                "id": firing.id,
                "recurs": firing.recurs,
                "alert_id": alert_id,
                "triggered_at": triggered_at,
                "cleared_at": cleared_at,
            },
        )
        row = noted.one()
        return FiringRecord(
            alert_id=row.alert_id, triggered_at=row.triggered_at, cleared_at=row.cleared_at
        )
