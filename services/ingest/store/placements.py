"""Devices that were moved, and of which that is yet to be said. Triggers note them (migration 0015)."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from libs.common.events.ingest import Place


class Placements:
    """Those of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def take(self, most: int) -> tuple[int, Sequence[Place]] | None:
        """Take notes of about `most` devices, oldest first; return where these are, with a number.

        Numbers rise from one taking to the next. None: there is nothing, or somebody else is at it.
        """
        # One at a time: the higher number is the newer word.
        if not await self._session.scalar(
            text("SELECT pg_try_advisory_xact_lock(hashtextextended(:turn, 0))"),
            {"turn": f"ingest.placements {self._tenant_id}"},
        ):
            return None
        device_ids = list(
            await self._session.scalars(
                text(
                    "WITH oldest AS (SELECT seq, cardinality(device_ids) AS devices"
                    " FROM ingest.placements WHERE tenant_id = :tenant ORDER BY seq LIMIT 1000),"
                    " counted AS (SELECT seq, sum(devices) OVER (ORDER BY seq) - devices AS before"
                    " FROM oldest),"
                    " taken AS (DELETE FROM ingest.placements WHERE tenant_id = :tenant"
                    " AND seq IN (SELECT seq FROM counted WHERE before < :most)"
                    " RETURNING device_ids)"
                    " SELECT DISTINCT unnest(device_ids) FROM taken"
                ),
                {"tenant": self._tenant_id, "most": most},
            )
        )
        if not device_ids:
            return None
        rows = await self._session.execute(
            text(
                "SELECT groups, array_agg(device_id) AS device_ids FROM historian.device_places"
                " WHERE tenant_id = :tenant AND device_id = ANY(:devices) GROUP BY groups"
            ),
            {"tenant": self._tenant_id, "devices": device_ids},
        )
        places = [Place(row.groups, row.device_ids) for row in rows]
        number = await self._session.scalar(text("SELECT nextval('ingest.placements_said')"))
        return number, places

    async def forget(self) -> None:
        """Forget where the tenant's devices are, in the historian too."""
        for table in ("ingest.placements", "historian.device_places"):
            await self._session.execute(
                text(f"DELETE FROM {table} WHERE tenant_id = :tenant"),  # noqa: S608 - a table of ours
                {"tenant": self._tenant_id},
            )


class Unsaid:
    """The tenants of whose devices something is to be said (role `ingest_engine`)."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def tenants(self) -> Sequence[UUID]:
        """Return them."""
        async with self._engine.connection() as connection:
            found = await connection.scalars(
                text("SELECT DISTINCT tenant_id FROM ingest.placements")
            )
            return found.all()
