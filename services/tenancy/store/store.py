"""What one of tenancy's doors may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from libs.common.quotas.store import Quotas
from services.tenancy.store.api_keys import ApiKeys
from services.tenancy.store.audit import Trail
from services.tenancy.store.brandings import Brandings
from services.tenancy.store.factors import Factors
from services.tenancy.store.identity_providers import Identities, IdentityProviders, SignOns
from services.tenancy.store.invitations import Invitations
from services.tenancy.store.login_policies import LoginPolicies
from services.tenancy.store.mails import Mails
from services.tenancy.store.members import Members
from services.tenancy.store.plans import Plans
from services.tenancy.store.registration import Registration
from services.tenancy.store.removals import Removal
from services.tenancy.store.roles import Roles
from services.tenancy.store.tenants import Tenants
from services.tenancy.store.usage import Usage
from services.tenancy.store.users import Users


class TenancyStore(Store):
    """One tenant, its members, invitations, roles, API keys, trail and mail; and the users behind the members.

    `sends_mail`: whether this installation has a mail server.
    """

    def __init__(self, session: AsyncSession, tenant_id: UUID, *, sends_mail: bool = False) -> None:
        super().__init__(session, tenant_id)
        self.tenants = Tenants(session, tenant_id)
        self.members = Members(session, tenant_id)
        self.invitations = Invitations(session, tenant_id)
        self.roles = Roles(session, tenant_id)
        self.api_keys = ApiKeys(session, tenant_id)
        self.removal = Removal(session, tenant_id)
        self.users = Users(session)
        self.brandings = Brandings(session, tenant_id)
        self.plans = Plans(session)
        self.quotas = Quotas(session, tenant_id, "tenancy")
        self.usage = Usage(session, tenant_id)
        self.identity_providers = IdentityProviders(session, tenant_id)
        self.sign_ons = SignOns(session, tenant_id)
        self.identities = Identities(session, tenant_id)
        self.trail = Trail(session, tenant_id)
        self.registration = Registration(session, tenant_id)
        self.mails = Mails(session, tenant_id, sends_mail=sends_mail)
        self.factors = Factors(session)
        self.login_policies = LoginPolicies(session, tenant_id)
