"""What one of tenancy's doors may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from services.tenancy.store.invitations import Invitations
from services.tenancy.store.members import Members
from services.tenancy.store.removals import Removal
from services.tenancy.store.roles import Roles
from services.tenancy.store.tenants import Tenants
from services.tenancy.store.users import Users


class TenancyStore(Store):
    """One tenant, its members, invitations and roles; and the users behind the members."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.tenants = Tenants(session, tenant_id)
        self.members = Members(session, tenant_id)
        self.invitations = Invitations(session, tenant_id)
        self.roles = Roles(session, tenant_id)
        self.removal = Removal(session, tenant_id)
        self.users = Users(session)
