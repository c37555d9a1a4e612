"""Logging in and out."""

from collections.abc import Sequence
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field, SecretStr

from libs.common.email import normalise_email
from libs.common.errors import Forbidden, Invalid, TooManyRequests, Unauthenticated, Unavailable
from libs.common.http.access import public
from libs.common.http.idempotency import repeatable
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.gateway.adapters.limits import Limiter
from services.gateway.api.deps import AllAccounts, AllSessions, IsLoggedIn
from services.gateway.domain.limit import Limit
from services.gateway.domain.secret import hash_secret
from services.gateway.domain.session import Ended
from services.gateway.usecases.sessions import Tokens

router = APIRouter(prefix="/api/v1/auth", tags=["auth"])

RefreshToken = Annotated[SecretStr, Field(min_length=1, max_length=256)]


class Login(Body):
    """What someone logs in with."""

    email: Annotated[str, Field(min_length=1, max_length=1000, examples=["ann@plant.example"])]
    password: Annotated[SecretStr, Field(min_length=1, max_length=1024)]
    tenant: Annotated[str | None, Field(max_length=64, description="The short name of the tenant to enter. Absent: the one that invited the user first.")] = None  # fmt: skip


class Acceptance(Body):
    """What an invitation is accepted with."""

    token: Annotated[SecretStr, Field(min_length=1, max_length=256)]
    password: Annotated[SecretStr, Field(min_length=1, max_length=1024, description="For a new account the one you choose: 12 characters at least. Else the one you have.")]  # fmt: skip


class Refresh(Body):
    """What a session is continued with."""

    refresh_token: RefreshToken


class Logout(Body):
    """What session is ended; absent: that of the access token."""

    refresh_token: RefreshToken | None = None


class Switch(Body):
    """Which tenant to enter."""

    tenant_id: UUID


class TokensOut(Out):
    """Both tokens. The refresh token is good for one use; it gives the next pair."""

    access_token: str
    refresh_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the name of a type
    expires_in: Annotated[int, Field(description="Seconds until the access token expires.")]


class MembershipOut(Out):
    """A tenant the user may enter, and what it calls them."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    name: str
    roles: Sequence[str]


class MeOut(Out):
    """Who is logged in, where, and what they may do there."""

    user_id: UUID
    email: str
    name: str
    platform_admin: bool
    tenant_id: UUID
    session_id: UUID
    permissions: Annotated[list[str], Field(description="Patterns: `alerts:*` is every action on alerts, `*:read` reading of everything, `*` all.")]  # fmt: skip
    memberships: list[MembershipOut]


class TicketOut(Out):
    """What opens one live connection, within half a minute."""

    ticket: str
    expires_in: int


@router.post(
    "/login", responses=problems(Unauthenticated, TooManyRequests, Unavailable), max_body_size=8192
)
@public("here one gets a credential")
async def log_in(
    body: Login, sessions: AllSessions, request: Request, response: Response
) -> TokensOut:
    """Open a session with an email address and a password."""
    await _count_attempt(request, response, _known_as(body.email))
    return _out(await sessions.log_in(body.email, body.password.get_secret_value(), body.tenant))


@router.post(
    "/invitations/accept",
    responses=problems(Unauthenticated, Invalid, TooManyRequests, Unavailable),
    max_body_size=8192,
)
@public("the invitation is the credential")
async def accept_invitation(
    body: Acceptance, sessions: AllSessions, request: Request, response: Response
) -> TokensOut:
    """Join the tenant that invited you, and open a session there.

    If you have no account yet, the password becomes yours; else it is the one you have.
    """
    token = body.token.get_secret_value()
    # Attempts at a password count the same by whichever way they are made.
    await _count_attempt(request, response, await sessions.invited_email(token) or token)
    return _out(await sessions.accept_invitation(token, body.password.get_secret_value()))


@router.post(
    "/refresh",
    responses=problems(Unauthenticated, TooManyRequests, Unavailable),
    max_body_size=8192,
)
@public("the refresh token is the credential")
async def refresh_session(body: Refresh, sessions: AllSessions) -> TokensOut:
    """Exchange a refresh token for the next pair of tokens."""
    return _out(await sessions.refresh(body.refresh_token.get_secret_value()))


@router.post("/logout", status_code=204, responses=problems(Unauthenticated), max_body_size=8192)
async def log_out(caller: IsLoggedIn, sessions: AllSessions, body: Logout | None = None) -> None:
    """End the session: its tokens are void, its live connections are closed."""
    if body is not None and body.refresh_token is not None:
        await sessions.log_out(body.refresh_token.get_secret_value())
    await sessions.end(
        caller.access.tenant_id, because=Ended.LOGGED_OUT, session_id=caller.access.session_id
    )


@router.post(
    "/switch", responses=problems(Unauthenticated, Forbidden, Unavailable), max_body_size=8192
)
async def switch_tenant(body: Switch, caller: IsLoggedIn, sessions: AllSessions) -> TokensOut:
    """Open a session in another tenant of the same user; the present one goes on until logged out."""
    return _out(await sessions.switch(caller.access.user_id, body.tenant_id))


@router.get("/me", responses=problems(Unauthenticated, Unavailable))
async def get_me(caller: IsLoggedIn, accounts: AllAccounts) -> MeOut:
    """Return who is logged in."""
    account = await accounts.get(caller.access.user_id)
    membership = account.membership_in(caller.access.tenant_id) if account else None
    if account is None or membership is None:
        raise Unauthenticated("the user may not enter this tenant any more")
    return MeOut(
        user_id=account.user_id,
        email=account.email,
        name=membership.name,
        platform_admin=account.is_platform_admin,
        tenant_id=caller.access.tenant_id,
        session_id=caller.access.session_id,
        permissions=sorted(caller.principal.permissions),
        memberships=[MembershipOut.model_validate(m) for m in account.memberships],
    )


@router.post("/ws-ticket", status_code=201, responses=problems(Unauthenticated), max_body_size=8192)
@repeatable("a ticket that nobody uses is void after half a minute")
async def issue_ticket(caller: IsLoggedIn, sessions: AllSessions) -> TicketOut:
    """Get a ticket for one live connection: `/api/v1/ws?ticket=…`, once."""
    ticket = await sessions.issue_ticket(caller.access)
    return TicketOut(ticket=ticket, expires_in=int(sessions.lifetimes.ticket.total_seconds()))


async def _count_attempt(request: Request, response: Response, account: str) -> None:
    """Count an attempt at an account from the client's address. Raises TooManyRequests."""
    limiter: Limiter = request.app.state.limiter
    limit: Limit = request.app.state.login_limit
    # The account is named by a hash: addresses of people do not belong into Redis.
    key = f"{request.state.address}:{hash_secret(account).hex()[:32]}"
    standing = await limiter.hit(limit, key)
    if not standing.is_allowed:
        raise TooManyRequests(
            "too many attempts to log in to this account", retry_after_s=standing.reset_s
        )
    for name, value in standing.headers():
        response.headers[name.decode()] = value.decode()


def _known_as(email: str) -> str:
    """Return the spelling by which tenancy looks the account up; what is no address has none."""
    try:
        return normalise_email(email)
    except Invalid:
        return email


def _out(tokens: Tokens) -> TokensOut:
    return TokensOut(
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expires_in=tokens.expires_in,
    )
