"""What CoAP keeps: the tenants' policies, and which OSCORE sequence numbers are used up."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.ingest.domain.policy import DevicePolicy
from services.ingest.store.tables import OscoreSequenceRow, PolicyRow

NUMBERS_PER_SECOND = 256
"""That a device's numbers grow by on the clock: of the 2**40 that there are (RFC 8613) enough for 130 years."""
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Policies:
    """The policy of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def get(self) -> DevicePolicy:
        """Return the policy; the strictest, if none was ever set."""
        plain_coap = await self._session.scalar(
            select(PolicyRow.plain_coap).where(PolicyRow.tenant_id == self._tenant_id)
        )
        return DevicePolicy(plain_coap=bool(plain_coap))

    async def put(self, policy: DevicePolicy, *, at: datetime) -> None:
        """Set the policy."""
        values = {"plain_coap": policy.plain_coap, "changed_at": at}
        await self._session.execute(
            insert(PolicyRow)
            .values(tenant_id=self._tenant_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id"], set_=values)
        )


class Sequences:
    """The sequence numbers of one tenant's OSCORE secrets, which must never be used twice."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def reserve(self, device_id: UUID, identity: str, count: int, *, at: datetime) -> int:
        """Take so many numbers that nobody has had; return the first.

        They go on with the clock too: a database that was restored from a backup has forgotten which
        numbers it gave out since, and one that is used twice gives the key's secret away.
        """
        floor = max(0, (at - _EPOCH) // timedelta(seconds=1)) * NUMBERS_PER_SECOND
        used = await self._session.scalar(
            insert(OscoreSequenceRow)
            .values(
                tenant_id=self._tenant_id,
                identity=identity,
                device_id=device_id,
                used=floor + count,
            )
            .on_conflict_do_update(
                index_elements=["tenant_id", "identity"],
                set_={"used": func.greatest(OscoreSequenceRow.used, floor) + count},
            )
            .returning(OscoreSequenceRow.used)
        )
        assert used is not None
        return int(used) - count
