"""Logging in and out."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, SecretStr

from libs.common.errors import Forbidden, Invalid, TooManyRequests, Unauthenticated, Unavailable
from libs.common.http.access import public
from libs.common.http.idempotency import repeatable
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.gateway.api.browser import (
    check_cookie_possible,
    clear_browser,
    from_own_page,
    refresh_cookie,
    required_token,
)
from services.gateway.api.deps import (
    AllAccounts,
    AllAttempts,
    AllSessions,
    IsLoggedIn,
    LoggedIn,
)
from services.gateway.api.entering import (
    SECOND_STEP,
    ClientOf,
    Entering,
    TokensOut,
    check_entering,
    entered,
    tell_standing,
    tokens_out,
)
from services.gateway.domain.session import Ended
from services.gateway.usecases.sessions import Tokens

router = APIRouter(prefix="/api/v1/auth", tags=["auth"], dependencies=[Depends(from_own_page)])

RefreshToken = Annotated[
    SecretStr, Field(min_length=1, max_length=256, examples=["4cZ0yR7uK1mW9xQ3tB5nV8pL2sD6fG0h"])
]


class Login(Entering):
    """What someone logs in with."""

    email: Annotated[str, Field(min_length=1, max_length=1000, examples=["ann@plant.example"])]
    password: Annotated[
        SecretStr, Field(min_length=1, max_length=1024, examples=["correct horse battery staple"])
    ]
    tenant: Annotated[str | None, Field(max_length=64, description="The short name of the tenant to enter. Absent: the one that invited the user first.", examples=["acme-steel"])] = None  # fmt: skip


class Acceptance(Entering):
    """What an invitation is accepted with."""

    token: Annotated[
        SecretStr,
        Field(min_length=1, max_length=256, examples=["iit_3jR8tVw0Qm5yZ1xK7uN9pL2sD4fG6hJ8"]),
    ]
    password: Annotated[SecretStr, Field(min_length=1, max_length=1024, description="For a new account the one you choose (`GET /api/v1/auth/password/policy`). Else the one you have.", examples=["correct horse battery staple"])]  # fmt: skip


class Refresh(Body):
    """What a session is continued with; absent: the cookie."""

    refresh_token: RefreshToken | None = None


class Logout(Body):
    """What session is ended; absent: that of the access token, and of the cookie."""

    refresh_token: RefreshToken | None = None


class Switch(Entering):
    """Which tenant to enter."""

    tenant_id: UUID


class Proof(Body):
    """The password, once more."""

    password: Annotated[
        SecretStr, Field(min_length=1, max_length=1024, examples=["correct horse battery staple"])
    ]


class MembershipOut(Out):
    """A tenant the user may enter, and what it calls them."""

    tenant_id: UUID
    tenant_slug: Annotated[str, Field(examples=["acme-steel"])]
    tenant_name: Annotated[str, Field(examples=["Acme Steel"])]
    name: Annotated[str, Field(examples=["Ann Meyer"])]
    roles: Annotated[Sequence[str], Field(examples=[["operator"]])]


class MeOut(Out):
    """Who is logged in, where, and what they may do there."""

    user_id: UUID
    email: Annotated[str, Field(examples=["ann@plant.example"])]
    name: Annotated[str, Field(examples=["Ann Meyer"])]
    platform_admin: bool
    tenant_id: UUID
    session_id: UUID
    permissions: Annotated[list[str], Field(description="Patterns: `alerts:*` is every action on alerts, `*:read` reading of everything, `*` all.", examples=[["alerts:*", "devices:read"]])]  # fmt: skip
    memberships: list[MembershipOut]


class TicketOut(Out):
    """What opens one live connection, within half a minute."""

    ticket: Annotated[str, Field(examples=["Qm5yZ1xK7uN9pL2sD4fG6hJ8kR3tVw0c"])]
    expires_in: Annotated[int, Field(examples=[30])]


@router.post(
    "/login",
    responses=problems(Unauthenticated, Forbidden, Invalid, TooManyRequests, Unavailable)
    | SECOND_STEP,
    response_model=TokensOut,
    response_model_exclude_none=True,
    max_body_size=8192,
)
@public("here one gets a credential")
async def log_in(
    body: Login,
    sessions: AllSessions,
    attempts: AllAttempts,
    client: ClientOf,
    request: Request,
    response: Response,
) -> TokensOut | JSONResponse:
    """Log in with an email address and a password.

    Who has a second factor, or must have one here, gets 202 and goes on with the second step.
    """
    check_entering(body, request)
    async with attempts.attempt(body.email, request.state.address) as standing:
        tell_standing(response, standing)
        password = body.password.get_secret_value()
        outcome = await sessions.log_in(body.email, password, body.tenant, client)
    if isinstance(outcome, Tokens):
        await attempts.note_success(body.email, client.address)
    return entered(outcome, request, response, cookie=body.cookie)


@router.post(
    "/invitations/accept",
    responses=problems(Unauthenticated, Forbidden, Invalid, TooManyRequests, Unavailable)
    | SECOND_STEP,
    response_model=TokensOut,
    response_model_exclude_none=True,
    max_body_size=8192,
)
@public("the invitation is the credential")
async def accept_invitation(
    body: Acceptance,
    sessions: AllSessions,
    attempts: AllAttempts,
    client: ClientOf,
    request: Request,
    response: Response,
) -> TokensOut | JSONResponse:
    """Join the tenant that invited you, and enter it, as by a login.

    If you have no account yet, the password becomes yours; else it is the one you have.
    """
    check_entering(body, request)
    token = body.token.get_secret_value()
    # Attempts at a password count the same by whichever way they are made.
    account = await sessions.invited_email(token) or token
    async with attempts.attempt(account, request.state.address) as standing:
        tell_standing(response, standing)
        password = body.password.get_secret_value()
        outcome = await sessions.accept_invitation(token, password, client)
    if isinstance(outcome, Tokens):
        await attempts.note_success(account, client.address)
    return entered(outcome, request, response, cookie=body.cookie)


@router.post(
    "/refresh",
    responses=problems(Unauthenticated, Forbidden, Invalid, TooManyRequests, Unavailable),
    response_model_exclude_none=True,
    max_body_size=8192,
)
@public("the refresh token is the credential")
async def refresh_session(
    sessions: AllSessions,
    client: ClientOf,
    request: Request,
    response: Response,
    body: Refresh | None = None,
) -> TokensOut:
    """Exchange a refresh token for the next pair of tokens; a browser's is in its cookie."""
    if body is not None and body.refresh_token is not None:
        token, is_cookie = body.refresh_token.get_secret_value(), False
    else:
        token, is_cookie = required_token(refresh_cookie(request)), True
        check_cookie_possible(request)
    tokens = await sessions.refresh(token, client)
    return tokens_out(tokens, request, response, cookie=is_cookie)


@router.post(
    "/logout", status_code=204, responses=problems(Unauthenticated, Forbidden), max_body_size=8192
)
@public("the access token, or the refresh token, says which session")
async def log_out(
    sessions: AllSessions, request: Request, response: Response, body: Logout | None = None
) -> None:
    """End the session: its tokens are void, its live connections are closed."""
    given = body.refresh_token.get_secret_value() if body and body.refresh_token else None
    kept = refresh_cookie(request)
    if "authorization" in request.headers:
        access = (await LoggedIn()(request)).access
        await sessions.end(access.tenant_id, because=Ended.LOGGED_OUT, session_id=access.session_id)
    elif given is None and kept is None:
        raise Unauthenticated("no credential was given")
    for token in filter(None, (given, kept)):
        await sessions.log_out(token)
    if kept is not None:
        clear_browser(response)


@router.post(
    "/switch",
    responses=problems(Unauthenticated, Forbidden, Invalid, Unavailable) | SECOND_STEP,
    response_model=TokensOut,
    response_model_exclude_none=True,
    max_body_size=8192,
)
async def switch_tenant(
    body: Switch,
    caller: IsLoggedIn,
    sessions: AllSessions,
    client: ClientOf,
    request: Request,
    response: Response,
) -> TokensOut | JSONResponse:
    """Enter another tenant of yours; the present session goes on until logged out.

    If that tenant asks for more than you proved at the login, you get 202, as at a login.
    """
    check_entering(body, request)
    outcome = await sessions.switch(caller.access, body.tenant_id, client)
    return entered(outcome, request, response, cookie=body.cookie)


@router.post(
    "/proof",
    status_code=204,
    responses=problems(Unauthenticated, Forbidden, TooManyRequests, Unavailable),
    max_body_size=8192,
)
async def prove_again(
    body: Proof,
    caller: IsLoggedIn,
    sessions: AllSessions,
    accounts: AllAccounts,
    attempts: AllAttempts,
    request: Request,
    response: Response,
) -> None:
    """Show the password again: for ten minutes you may change what protects your account.

    With a second factor, that takes a session that was opened by it.
    """
    account = await accounts.get(caller.access.user_id)
    if account is None:
        raise Unauthenticated("the user may not enter any more")
    async with attempts.attempt(account.email, request.state.address) as standing:
        tell_standing(response, standing)
        await sessions.prove(caller.access, account.email, body.password.get_secret_value())


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
        platform_admin=caller.principal.platform_admin,
        tenant_id=caller.access.tenant_id,
        session_id=caller.access.session_id,
        permissions=sorted(caller.principal.permissions),
        memberships=[
            MembershipOut.model_validate(m)
            for m in account.memberships
            # Whoever runs the tenant's identity provider learns nothing of the user's other ones.
            if m is membership or not caller.access.by_provider
        ],
    )


@router.post("/ws-ticket", status_code=201, responses=problems(Unauthenticated), max_body_size=8192)
@repeatable("a ticket that nobody uses is void after half a minute")
async def issue_ticket(caller: IsLoggedIn, sessions: AllSessions) -> TicketOut:
    """Get a ticket for one live connection: `/api/v1/ws?ticket=…`, once."""
    ticket = await sessions.issue_ticket(caller.access)
    return TicketOut(ticket=ticket, expires_in=int(sessions.lifetimes.ticket.total_seconds()))
