"""Policies of one tenant."""

from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.retention.domain.policy import DataType, Policy
from services.retention.store.tables import PolicyRow

POLICIES_LOCK = 7301003
"""Held by who changes a policy, and by who drops a day by them: never both at once."""

_UNIQUE_VIOLATION = "23505"


class Policies:
    """The policies of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def all(self) -> list[Policy]:
        """Return the policies, by type."""
        rows = await self._session.scalars(
            select(PolicyRow)
            .where(PolicyRow.tenant_id == self._tenant_id)
            .order_by(PolicyRow.data_type)
        )
        return [_to_policy(row) for row in rows]

    async def get(self, policy_id: UUID) -> Policy:
        """Return a policy. Raises NotFound."""
        return _to_policy(await self._row(policy_id))

    async def find(self, data_type: DataType) -> Policy | None:
        """Return the policy for a type of data, if there is one."""
        row = await self._session.scalar(
            select(PolicyRow).where(
                PolicyRow.tenant_id == self._tenant_id, PolicyRow.data_type == data_type.value
            )
        )
        return _to_policy(row) if row else None

    async def lock(self) -> None:
        """Let no policy change and no day be dropped by others until the transaction ends."""
        await self._session.execute(text(f"SELECT pg_advisory_xact_lock({POLICIES_LOCK:d})"))

    async def add(self, policy: Policy) -> None:
        """Keep a new policy. Raises Conflict if the type of data has one."""
        self._session.add(
            PolicyRow(
                tenant_id=self._tenant_id,
                id=policy.id,
                data_type=policy.data_type.value,
                keep_days=policy.keep_days,
                version=policy.version,
                created_at=policy.created_at,
                updated_at=policy.updated_at,
            )
        )
        try:
            await self._session.flush()
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION:
                raise Conflict(f"there is a policy for {policy.data_type}") from error
            raise

    async def update(self, policy: Policy) -> None:
        """Save what may change of a policy. Raises NotFound."""
        row = await self._row(policy.id)
        row.keep_days = policy.keep_days
        row.version = policy.version
        row.updated_at = policy.updated_at
        await self._session.flush()

    async def remove(self, policy_id: UUID) -> None:
        """Remove a policy. Raises NotFound."""
        await self._session.delete(await self._row(policy_id))
        await self._session.flush()

    async def _row(self, policy_id: UUID) -> PolicyRow:
        row = await self._session.scalar(
            select(PolicyRow).where(
                PolicyRow.tenant_id == self._tenant_id, PolicyRow.id == policy_id
            )
        )
        if row is None:
            raise NotFound(f"no policy {policy_id}")
        return row


def _to_policy(row: PolicyRow) -> Policy:
    return Policy(
        id=row.id,
        data_type=DataType(row.data_type),
        keep_days=row.keep_days,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
