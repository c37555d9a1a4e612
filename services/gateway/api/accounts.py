"""Accounts, as their owners see to them: registering, passwords, addresses, what one is called."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, SecretStr

from libs.common.email import MAX_LENGTH as LONGEST_EMAIL
from libs.common.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    invalid,
)
from libs.common.http.access import public
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.gateway.api.browser import from_own_page
from services.gateway.api.deps import AllAccounts, AllAttempts, AllSessions, IsLoggedIn, Users
from services.gateway.api.entering import (
    SECOND_STEP,
    ClientOf,
    Entering,
    TokensOut,
    check_entering,
    entered,
)

router = APIRouter(prefix="/api/v1/auth", tags=["auth"], dependencies=[Depends(from_own_page)])

Email = Annotated[
    str, Field(min_length=1, max_length=LONGEST_EMAIL, examples=["ann@plant.example"])
]
NewPassword = Annotated[SecretStr, Field(min_length=1, max_length=4096, examples=["correct horse battery staple"])]  # fmt: skip
Token = Annotated[SecretStr, Field(min_length=1, max_length=256, examples=["iiotv_3jR8tVw0Qm5yZ1xK7uN9pL2sD4fG6hJ8"])]  # fmt: skip
OwnName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$", examples=["Ann"])]  # fmt: skip


class Registering(Body):
    """What somebody registers with."""

    tenant: Annotated[str, Field(min_length=1, max_length=63, description="Its short name.", examples=["acme-steel"])]  # fmt: skip
    email: Email
    password: NewPassword
    name: OwnName


class Verification(Entering):
    """What a registration is completed with."""

    token: Token
    password: Annotated[SecretStr, Field(min_length=1, max_length=1024, description="The one you registered with: it shows that you did.", examples=["correct horse battery staple"])]  # fmt: skip


class Forgotten(Body):
    """Whose password was forgotten."""

    email: Email


class Reset(Body):
    """What a forgotten password is replaced with."""

    token: Token
    password: NewPassword


class Change(Body):
    """The password one has, and the one it is to be."""

    current: Annotated[SecretStr, Field(min_length=1, max_length=1024, examples=["eleven grey herons at dusk"])]  # fmt: skip
    new: NewPassword


class Confirmation(Body):
    """What an address is confirmed with."""

    token: Token


class Profile(Body):
    """What one wants to be called in this tenant."""

    name: OwnName


class PasswordPolicyOut(Out):
    """What is asked of a new password: its length, and that it is not easily guessed.

    Refused are common passwords and what varies them, what repeats or counts up a few characters, and
    what holds one's name, address or tenant. No kinds of characters are asked for.
    """

    min_length: Annotated[int, Field(description="Characters, after NFKC.")]
    max_length: int


class TakenOut(Out):
    """What everybody is told, whoever they are."""

    detail: Annotated[str, Field(examples=["A mail is on its way, if there is whom to write to."])]


@router.get("/password/policy", responses=problems(Unavailable))
@public("who chooses a password has none yet")
async def get_password_policy(tenancy: Users) -> PasswordPolicyOut:
    """Return what is asked of a new password."""
    return PasswordPolicyOut.model_validate(await tenancy.password_policy())


@router.post(
    "/register",
    status_code=202,
    responses=problems(Invalid, TooManyRequests, Unavailable),
    max_body_size=8192,
)
@public("who registers is not known yet")
async def register(
    body: Registering, request: Request, attempts: AllAttempts, tenancy: Users
) -> TakenOut:
    """Register with a tenant that lets people in by themselves; a mail says how it goes on.

    The answer is the same whether or not there is such a tenant, it takes you, or the address has an
    account.
    """
    password = body.password.get_secret_value()
    if await attempts.request(body.email, request.state.address):
        await tenancy.register(body.tenant, body.email, password, body.name)
    return TakenOut(detail="If this tenant takes you, a mail is on its way to the address.")


@router.post(
    "/verify-email",
    responses=problems(Unauthenticated, Forbidden, Conflict, Invalid, TooManyRequests, Unavailable)
    | SECOND_STEP,
    response_model=TokensOut,
    response_model_exclude_none=True,
    max_body_size=8192,
)
@public("the token in the mail is the credential")
async def verify_email(
    body: Verification,
    sessions: AllSessions,
    client: ClientOf,
    request: Request,
    response: Response,
) -> TokensOut | JSONResponse:
    """Complete a registration: with the token that came by mail, and the password you chose."""
    check_entering(body, request)
    outcome = await sessions.verify_registration(
        body.token.get_secret_value(), body.password.get_secret_value(), client
    )
    return entered(outcome, request, response, cookie=body.cookie)


@router.post(
    "/password/forgot",
    status_code=202,
    responses=problems(Invalid, TooManyRequests, Unavailable),
    max_body_size=8192,
)
@public("who forgot the password has no credential")
async def forget_password(
    body: Forgotten, request: Request, attempts: AllAttempts, tenancy: Users
) -> TakenOut:
    """Ask for a link by which another password can be chosen. The answer is always the same."""
    if await attempts.request(body.email, request.state.address):
        await tenancy.forget_password(body.email)
    return TakenOut(detail="If there is such an account, a mail is on its way to the address.")


@router.post(
    "/password/reset",
    status_code=204,
    responses=problems(Unauthenticated, Invalid, TooManyRequests, Unavailable),
    max_body_size=8192,
)
@public("the token in the mail is the credential")
async def reset_password(
    body: Reset, request: Request, attempts: AllAttempts, tenancy: Users
) -> Response:
    """Choose another password, by the token that came by mail. It ends all your sessions.

    It opens none: log in with it.
    """
    email = await tenancy.reset_password(
        body.token.get_secret_value(), body.password.get_secret_value()
    )
    # Whoever reads the owner's mail here must get in, however many strangers guess meanwhile.
    await attempts.note_success(email, request.state.address)
    return Response(status_code=204)


@router.post(
    "/password",
    status_code=204,
    responses=problems(Unauthenticated, Invalid, TooManyRequests, Unavailable),
    max_body_size=8192,
)
async def change_password(
    body: Change,
    request: Request,
    caller: IsLoggedIn,
    accounts: AllAccounts,
    attempts: AllAttempts,
    tenancy: Users,
) -> Response:
    """Change your password. It ends your sessions everywhere, but for this one."""
    account = await accounts.get(caller.access.user_id)
    if account is None:
        raise Unauthenticated("the user may not enter this tenant any more")
    try:
        async with attempts.attempt(account.email, request.state.address):
            await tenancy.change_password(
                account.user_id,
                current=body.current.get_secret_value(),
                new=body.new.get_secret_value(),
                session_id=caller.access.session_id,
            )
    except Unauthenticated:
        # Not 401: the session is good, and no client must think that it has to log in anew.
        raise invalid("#/current", "is not your password") from None
    return Response(status_code=204)


@router.post(
    "/email/confirmation",
    status_code=202,
    responses=problems(Unauthenticated, TooManyRequests, Unavailable),
    max_body_size=8192,
)
async def ask_to_confirm_email(
    request: Request,
    caller: IsLoggedIn,
    accounts: AllAccounts,
    attempts: AllAttempts,
    tenancy: Users,
) -> TakenOut:
    """Ask for a link by which you confirm your address, if that is not confirmed yet."""
    account = await accounts.get(caller.access.user_id)
    if account is None:
        raise Unauthenticated("the user may not enter this tenant any more")
    if await attempts.request(account.email, request.state.address):
        await tenancy.ask_to_confirm(account.user_id, caller.access.tenant_id)
    return TakenOut(detail="If the address is not confirmed yet, a mail is on its way to it.")


@router.post(
    "/email/confirm",
    status_code=204,
    responses=problems(Unauthenticated, Invalid, Unavailable),
    max_body_size=8192,
)
async def confirm_email(body: Confirmation, caller: IsLoggedIn, tenancy: Users) -> Response:
    """Confirm your address by the token that came by mail, where you are logged in."""
    try:
        await tenancy.confirm_address(
            caller.access.user_id, caller.access.tenant_id, body.token.get_secret_value()
        )
    except Unauthenticated as refused:
        raise invalid("#/token", "is not good, or no longer, or not yours") from refused
    return Response(status_code=204)


@router.patch(
    "/me",
    status_code=204,
    responses=problems(Unauthenticated, Invalid, NotFound, Unavailable),
    max_body_size=8192,
)
async def change_me(
    body: Profile, caller: IsLoggedIn, accounts: AllAccounts, tenancy: Users
) -> Response:
    """Change what you are called in this tenant."""
    await tenancy.rename(caller.access.user_id, caller.access.tenant_id, body.name)
    accounts.forget(caller.access.user_id)
    return Response(status_code=204)
