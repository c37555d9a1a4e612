"""Logging in and out."""

from collections.abc import Sequence
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field, SecretStr

from libs.common.errors import Forbidden, TooManyRequests, Unauthenticated, Unavailable
from libs.common.http.access import public
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
    tenant: Annotated[str | None, Field(max_length=64, description="The short name of the tenant to enter. Absent: the one the user has been in for longest.")] = None  # fmt: skip


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
    """A tenant the user may enter."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
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
    # The account is named by a hash: addresses of people do not belong into Redis.
    account = hash_secret(body.email.strip().casefold()).hex()[:32]
    limiter: Limiter = request.app.state.limiter
    limit: Limit = request.app.state.login_limit
    standing = await limiter.hit(limit, f"{request.state.address}:{account}")
    if not standing.is_allowed:
        raise TooManyRequests(
            "too many attempts to log in to this account", retry_after_s=standing.reset_s
        )
    for name, value in standing.headers():
        response.headers[name.decode()] = value.decode()
    return _out(await sessions.log_in(body.email, body.password.get_secret_value(), body.tenant))


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
    if account is None:
        raise Unauthenticated("the user may not log in any more")
    return MeOut(
        user_id=account.user_id,
        email=account.email,
        name=account.name,
        platform_admin=account.is_platform_admin,
        tenant_id=caller.access.tenant_id,
        session_id=caller.access.session_id,
        permissions=sorted(caller.principal.permissions),
        memberships=[MembershipOut.model_validate(m) for m in account.memberships],
    )


@router.post("/ws-ticket", status_code=201, responses=problems(Unauthenticated), max_body_size=8192)
async def issue_ticket(caller: IsLoggedIn, sessions: AllSessions) -> TicketOut:
    """Get a ticket for one live connection: `/api/v1/ws?ticket=…`, once."""
    ticket = await sessions.issue_ticket(caller.access)
    return TicketOut(ticket=ticket, expires_in=int(sessions.lifetimes.ticket.total_seconds()))


def _out(tokens: Tokens) -> TokensOut:
    return TokensOut(
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expires_in=tokens.expires_in,
    )
