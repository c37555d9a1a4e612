"""What the gateway's own routes ask for."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import Depends, Query, Request

from libs.common.auth.api_key import is_api_key
from libs.common.auth.permission import SAFE, Permission, principal
from libs.common.auth.principal import Principal
from libs.common.auth.shown import shown_token
from libs.common.db.acting import Acting, act_as, actor_now
from libs.common.db.transactions import Transactions
from libs.common.errors import Forbidden, Malformed, Unauthenticated
from libs.common.http.doors import Now, transaction
from services.gateway.adapters.factors import Factors
from services.gateway.adapters.tenancy import Tenancy
from services.gateway.domain.login import is_recent
from services.gateway.domain.policy import INSTALLATION
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.attempts import Attempts
from services.gateway.usecases.callers import Caller
from services.gateway.usecases.rate_limits import RateLimits
from services.gateway.usecases.second_step import Passkeys, SecondSteps
from services.gateway.usecases.sessions import Sessions


def bearer_token(authorization: str | None) -> str:
    """Return the token of an Authorization header. Raises Unauthenticated."""
    token = shown_token(authorization)
    if token is None:
        raise Unauthenticated("no credential was given")
    return token


def credential(authorization: Sequence[str], api_key: Sequence[str]) -> str | None:
    """Return what a request shows in `Authorization` or `X-API-Key`, as it stands in the former.

    Raises Malformed if there are several: services, proxies and we might each take another.
    """
    if len(authorization) > 1:
        raise Malformed("there are two Authorization headers")
    if len(authorization) + len(api_key) > 1:
        raise Malformed("send one credential: in Authorization or in X-API-Key, once")
    if not api_key:
        return authorization[0] if authorization else None
    # What is no API key is not one because it stands here.
    return f"Bearer {api_key[0]}" if is_api_key(api_key[0]) else ""


class LoggedIn:
    """Lets everyone pass who is logged in, whatever they may do otherwise."""

    permission = "session:own"

    async def __call__(self, request: Request) -> Caller:
        """Return the caller. Raises Unauthenticated."""
        headers = request.headers
        token = bearer_token(
            credential(headers.getlist("authorization"), headers.getlist("x-api-key"))
        )
        if is_api_key(token):
            raise Forbidden("this is for people who are logged in; an API key is nobody's session")
        caller: Caller = await request.app.state.callers.caller(token)
        who = caller.principal
        actor = msgspec.structs.replace(
            actor_now(), kind=who.kind, id=who.subject, session_id=who.session_id
        )
        changes = request.method not in SAFE
        act_as(Acting(actor, who.groups, who.tenant_id, changes=changes))
        return caller


class ProofNeeded(Forbidden):
    """The password was shown too long ago for what is asked."""

    title = "Recent proof needed"
    slug = "proof-needed"


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def _accounts(request: Request) -> Accounts:
    accounts: Accounts = request.app.state.accounts
    return accounts


def _scope(
    who: Annotated[Principal, Depends(principal)],
    tenant_id: Annotated[
        UUID | None,
        Query(description="For the platform's administrators: whose. Absent: the installation's."),
    ] = None,
) -> UUID:
    """Return whose limits are meant. Raises Forbidden if they are somebody else's."""
    if who.platform_admin:
        return tenant_id or INSTALLATION
    if tenant_id not in {None, who.tenant_id}:
        raise Forbidden("you may set the limits of your own tenant alone")
    return who.tenant_id


LimitsOf = Annotated[UUID, Depends(_scope)]


async def _in_scope(request: Request, tenant_id: LimitsOf) -> AsyncIterator[GatewayStore]:
    transactions: Transactions[GatewayStore] = request.app.state.transactions
    async with transactions.begin(tenant_id) as store:
        yield store


def _rate_limits(request: Request) -> RateLimits:
    limits: RateLimits = request.app.state.rate_limits
    return limits


CanReadRateLimits = Annotated[Principal, Depends(Permission("rate_limits:read"))]
CanWriteRateLimits = Annotated[
    Principal, Depends(Permission("rate_limits:write", of_whole_tenant=True))
]
CanReadTenants = Annotated[Principal, Depends(Permission("tenants:read"))]
CanWriteTenants = Annotated[Principal, Depends(Permission("tenants:write", of_whole_tenant=True))]
InTransaction = Annotated[GatewayStore, Depends(transaction, scope="function")]
InScope = Annotated[GatewayStore, Depends(_in_scope, scope="function")]
"""The transaction of whose limits are meant."""
KnownRateLimits = Annotated[RateLimits, Depends(_rate_limits)]


def _attempts(request: Request) -> Attempts:
    attempts: Attempts = request.app.state.attempts
    return attempts


def _tenancy(request: Request) -> Tenancy:
    tenancy: Tenancy = request.app.state.tenancy
    return tenancy


async def _just_proved(
    caller: Annotated[Caller, Depends(LoggedIn())], request: Request, now: Now
) -> Caller:
    session = await _sessions(request).get(caller.access)
    if session.proved_at is None or not is_recent(session.proved_at, now):
        raise ProofNeeded("show your password again first: POST /api/v1/auth/proof")
    return caller


async def _owner(
    caller: Annotated[Caller, Depends(LoggedIn())], request: Request, now: Now
) -> Caller:
    return await _just_proved(caller, request, now) if caller.access.by_provider else caller


def _factors(request: Request) -> Factors:
    factors: Factors = request.app.state.factors
    return factors


def _passkeys(request: Request) -> Passkeys:
    passkeys: Passkeys = request.app.state.passkeys
    return passkeys


def _second_steps(request: Request) -> SecondSteps:
    steps: SecondSteps = request.app.state.second_steps
    return steps


IsLoggedIn = Annotated[Caller, Depends(LoggedIn())]
AllSessions = Annotated[Sessions, Depends(_sessions)]
AllAccounts = Annotated[Accounts, Depends(_accounts)]
AllAttempts = Annotated[Attempts, Depends(_attempts)]
Users = Annotated[Tenancy, Depends(_tenancy)]
"""Tenancy, which keeps the users."""
AllFactors = Annotated[Factors, Depends(_factors)]
AllPasskeys = Annotated[Passkeys, Depends(_passkeys)]
AllSecondSteps = Annotated[SecondSteps, Depends(_second_steps)]
IsOwner = Annotated[Caller, Depends(_owner)]
"""Someone logged in by something of their own: for whom a tenant's provider let in, that is the
password, shown within the last ten minutes."""
HasJustProved = Annotated[Caller, Depends(_just_proved)]
"""Someone logged in who showed the password within the last ten minutes."""
