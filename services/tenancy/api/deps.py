"""What tenancy's routes ask for."""

from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import Depends, Header, Request

from libs.common.auth.permission import Permission, PlatformAdmin, principal
from libs.common.auth.principal import Kind, Principal
from libs.common.db.transactions import Transactions
from libs.common.errors import Forbidden
from libs.common.http.doors import Now, transaction
from libs.common.http.idempotency import claim_key
from libs.common.refusals import Refusals
from libs.common.sealing import Sealing
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.domain.invitation import Invitation, new_invitation
from services.tenancy.domain.password import PasswordPolicy
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.api_keys import ApiKeyHolders
from services.tenancy.store.requests import AccountRequests
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases.factors import SecondFactors

CanReadUsers = Annotated[Principal, Depends(Permission("users:read"))]
CanWriteUsers = Annotated[Principal, Depends(Permission("users:write"))]
CanReadRoles = Annotated[Principal, Depends(Permission("roles:read"))]
CanWriteRoles = Annotated[Principal, Depends(Permission("roles:write", of_whole_tenant=True))]
CanReadApiKeys = Annotated[Principal, Depends(Permission("api_keys:read"))]
CanWriteApiKeys = Annotated[Principal, Depends(Permission("api_keys:write"))]
CanReadIdentityProviders = Annotated[Principal, Depends(Permission("identity_providers:read"))]
CanWriteIdentityProviders = Annotated[
    Principal, Depends(Permission("identity_providers:write", of_whole_tenant=True))
]
CanWriteTenants = Annotated[Principal, Depends(Permission("tenants:write", of_whole_tenant=True))]
CanReadTenants = Annotated[Principal, Depends(Permission("tenants:read"))]
CanReadAudit = Annotated[Principal, Depends(Permission("audit:read", of_whole_tenant=True))]
IsPlatformAdmin = Annotated[Principal, Depends(PlatformAdmin())]


class Internal:
    """Lets the platform's own services pass, and no user, however much they may."""

    permission = "tenancy:internal"

    async def __call__(self, who: Annotated[Principal, Depends(principal)]) -> Principal:
        """Return the calling service. Raises Forbidden for everyone else."""
        if who.kind is not Kind.SERVICE or not who.may(self.permission):
            raise Forbidden("this is for the platform's own services")
        return who


class OfTenant:
    """Lets everyone pass who comes in for a tenant, whatever they may do there."""

    permission = "tenant:member"

    async def __call__(self, who: Annotated[Principal, Depends(principal)]) -> Principal:
        """Return the caller. Raises Unauthenticated."""
        return who


IsOfTenant = Annotated[Principal, Depends(OfTenant())]
IsGateway = Annotated[Principal, Depends(Internal())]


async def _new_tenant(
    request: Request, who: Annotated[Principal, Depends(principal)]
) -> AsyncIterator[TenancyStore]:
    # The Idempotency-Key is the caller's, and kept in their tenant.
    async with request.app.state.transactions.begin(uuid4(), who.tenant_id) as store:
        await claim_key(request, store)
        yield store


async def _tenant_of_path(
    request: Request, tenant_id: UUID, who: Annotated[Principal, Depends(principal)]
) -> AsyncIterator[TenancyStore]:
    bound = tenant_id if who.platform_admin else who.tenant_id
    async with request.app.state.transactions.begin(bound) as store:
        yield store


async def _tenant_to_administer(
    request: Request, tenant_id: UUID, who: Annotated[Principal, Depends(principal)]
) -> AsyncIterator[TenancyStore]:
    # As with a new tenant.
    async with request.app.state.transactions.begin(tenant_id, who.tenant_id) as store:
        await claim_key(request, store)
        yield store


def _transactions(request: Request) -> Transactions[TenancyStore]:
    transactions: Transactions[TenancyStore] = request.app.state.transactions
    return transactions


def _invitation(request: Request, now: Now) -> Invitation:
    return new_invitation(lifetime=request.app.state.invitation_lifetime, at=now)


def _accounts(request: Request) -> Accounts:
    accounts: Accounts = request.app.state.accounts
    return accounts


def _api_key_holders(request: Request) -> ApiKeyHolders:
    holders: ApiKeyHolders = request.app.state.api_key_holders
    return holders


def _refusals(request: Request) -> Refusals:
    refusals: Refusals = request.app.state.refusals
    return refusals


def _passwords(request: Request) -> Passwords:
    passwords: Passwords = request.app.state.passwords
    return passwords


def _sealing(request: Request) -> Sealing:
    sealing: Sealing = request.app.state.identity_provider_sealing
    return sealing


def _policy(request: Request) -> PasswordPolicy:
    policy: PasswordPolicy = request.app.state.password_policy
    return policy


def _requests(request: Request) -> AccountRequests:
    requests: AccountRequests = request.app.state.account_requests
    return requests


def _factors(request: Request) -> SecondFactors:
    factors: SecondFactors = request.app.state.factors
    return factors


def _seen_version(
    if_match: Annotated[
        str | None, Header(pattern=r'^"?\d{1,9}"?$', description="The version that you saw.")
    ] = None,
) -> int | None:
    return int(if_match.strip('"')) if if_match else None


InTransaction = Annotated[TenancyStore, Depends(transaction, scope="function")]
"""The transaction of the caller's tenant."""

InNewTenant = Annotated[TenancyStore, Depends(_new_tenant, scope="function")]
"""The transaction of a tenant that is to be."""

InTenantOfPath = Annotated[TenancyStore, Depends(_tenant_of_path, scope="function")]
"""The transaction of the tenant in the path for the platform's admins, of the caller's for others."""

InTenantToAdminister = Annotated[TenancyStore, Depends(_tenant_to_administer, scope="function")]
"""The transaction of the tenant in the path, for the platform's admins alone."""

AllTransactions = Annotated[Transactions[TenancyStore], Depends(_transactions)]
"""For what learns from the request itself whose transaction it needs."""

NewInvitation = Annotated[Invitation, Depends(_invitation)]
"""An invitation that nobody has yet."""

AllRefusals = Annotated[Refusals, Depends(_refusals)]
AllAccounts = Annotated[Accounts, Depends(_accounts)]
AllApiKeys = Annotated[ApiKeyHolders, Depends(_api_key_holders)]
TheSealing = Annotated[Sealing, Depends(_sealing)]
"""What seals the secrets of identity providers."""

AllFactors = Annotated[SecondFactors, Depends(_factors)]
PasswordHashing = Annotated[Passwords, Depends(_passwords)]
PasswordRules = Annotated[PasswordPolicy, Depends(_policy)]
AllRequests = Annotated[AccountRequests, Depends(_requests)]
SeenVersion = Annotated[int | None, Depends(_seen_version)]
"""The header If-Match, as a version."""
