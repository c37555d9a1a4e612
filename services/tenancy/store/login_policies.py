"""What a tenant asks of those who enter it."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.tenancy.store.tables import LoginPolicyRow


class LoginPolicies:
    """The policy of one tenant; without a row it asks for nothing special."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def requires_second_factor(self) -> bool:
        """Whether nobody enters by a password alone."""
        required = await self._session.scalar(
            select(LoginPolicyRow.require_second_factor).where(
                LoginPolicyRow.tenant_id == self._tenant_id
            )
        )
        return bool(required)

    async def set(self, *, require_second_factor: bool, at: datetime) -> None:
        """Say what the tenant asks for from now on."""
        values = {"require_second_factor": require_second_factor, "updated_at": at}
        await self._session.execute(
            insert(LoginPolicyRow)
            .values(tenant_id=self._tenant_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id"], set_=values)
        )
