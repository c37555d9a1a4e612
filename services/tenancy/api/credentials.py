"""What the gateway asks about accounts: registering, forgotten passwords, confirmed addresses."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field, SecretStr

from libs.common.email import normalise_email
from libs.common.http.doors import Now
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import (
    AllAccounts,
    AllRequests,
    AllTransactions,
    IsGateway,
    PasswordHashing,
    PasswordRules,
)
from services.tenancy.api.schemas import Name
from services.tenancy.domain.origin import FAMILIAR_FOR
from services.tenancy.domain.password import MAX_LENGTH
from services.tenancy.store.requests import RequestKind, new_request
from services.tenancy.usecases import passwords as usecases
from services.tenancy.usecases import registration, users

router = APIRouter(prefix="/internal/v1", include_in_schema=False)

Address = Annotated[str, Field(max_length=1000)]
Token = Annotated[SecretStr, Field(max_length=1000)]
# Too long ones are refused with the policy's own words.
Password = SecretStr


class Origin(Body):
    """An account, and where somebody wants to log in to it from."""

    email: Address
    origin: Annotated[str, Field(max_length=100)]


class FamiliarOut(Out):
    """Whether the account was logged in to from there."""

    is_familiar: bool


class PolicyOut(Out):
    """What is asked of a new password."""

    min_length: int
    max_length: int


class Registering(Body):
    """What somebody registers with."""

    tenant: Annotated[str, Field(max_length=64)]
    email: Address
    password: Password
    name: Name


class Forgotten(Body):
    """Whose password was forgotten."""

    email: Address


class Verification(Body):
    """The token that went to who registered, and the password they chose."""

    token: Token
    password: Annotated[SecretStr, Field(max_length=MAX_LENGTH)]


class Reset(Body):
    """The token that went to who forgot the password, and another password."""

    token: Token
    password: Password


class Change(Body):
    """Both passwords, and the session that goes on."""

    current: Annotated[SecretStr, Field(max_length=MAX_LENGTH)]
    new: Password
    session_id: UUID


class InTenant(Body):
    """Which of their tenants a user is in."""

    tenant_id: UUID


class Confirmation(InTenant):
    """The token that went to a user's address."""

    token: Token


class Rename(InTenant):
    """What a user wants to be called in one of their tenants."""

    name: Name


class JoinedOut(Out):
    """Who has joined which tenant."""

    tenant_id: UUID
    user_id: UUID
    email: str


class AddressOut(Out):
    """Whose password was set."""

    email: str


@router.get("/password-policy")
async def get_policy(who: IsGateway, policy: PasswordRules) -> PolicyOut:
    """Return what is asked of a new password."""
    return PolicyOut(min_length=policy.min_length, max_length=MAX_LENGTH)


@router.post("/origins/find")
async def find_origin(body: Origin, who: IsGateway, accounts: AllAccounts, now: Now) -> FamiliarOut:
    """Return whether an account was logged in to from there, lately; no for one that is not there."""
    since = now - FAMILIAR_FOR
    return FamiliarOut(is_familiar=await accounts.is_familiar(body.email, body.origin, since))


@router.post("/origins/note", status_code=204)
async def note_origin(body: Origin, who: IsGateway, accounts: AllAccounts, now: Now) -> Response:
    """Note that an account was logged in to from there."""
    await accounts.note_familiar(body.email, body.origin, now)
    return Response(status_code=204)


@router.post("/registrations", status_code=202)
async def register(
    body: Registering,
    request: Request,
    who: IsGateway,
    requests: AllRequests,
    passwords: PasswordHashing,
    policy: PasswordRules,
    now: Now,
) -> Response:
    """Take what somebody registers with; nothing is looked up before the answer."""
    await registration.ask(
        requests,
        passwords,
        policy,
        tenant_slug=body.tenant.lower(),
        email=normalise_email(body.email),
        password=body.password.get_secret_value(),
        name=body.name,
        now=now,
    )
    request.app.state.settle_soon()
    return Response(status_code=202)


@router.post("/registrations/verify")
async def verify_registration(
    body: Verification,
    who: IsGateway,
    transactions: AllTransactions,
    accounts: AllAccounts,
    passwords: PasswordHashing,
    now: Now,
) -> JoinedOut:
    """Let who registered join; 401 in equal words whatever was wrong."""
    joined = await registration.complete(
        transactions,
        accounts,
        passwords,
        token=body.token.get_secret_value(),
        password=body.password.get_secret_value(),
        now=now,
    )
    return JoinedOut.model_validate(joined)


@router.post("/passwords/forgotten", status_code=202)
async def forget_password(
    body: Forgotten, request: Request, who: IsGateway, requests: AllRequests, now: Now
) -> Response:
    """Take that somebody forgot a password; nothing is looked up before the answer."""
    email = normalise_email(body.email)
    await requests.add(new_request(RequestKind.FORGOT, email, now))
    request.app.state.settle_soon()
    return Response(status_code=202)


@router.post("/passwords/reset")
async def reset_password(
    body: Reset,
    who: IsGateway,
    transactions: AllTransactions,
    accounts: AllAccounts,
    passwords: PasswordHashing,
    policy: PasswordRules,
    now: Now,
) -> AddressOut:
    """Give a user the password they choose; 401 for a token that is not good, 422 for the password."""
    account = await usecases.reset(
        transactions,
        accounts,
        passwords,
        policy,
        token=body.token.get_secret_value(),
        password=body.password.get_secret_value(),
        now=now,
    )
    return AddressOut(email=account.email)


@router.post("/users/{user_id}/password", status_code=204)
async def change_password(
    user_id: UUID,
    body: Change,
    who: IsGateway,
    transactions: AllTransactions,
    accounts: AllAccounts,
    passwords: PasswordHashing,
    policy: PasswordRules,
    now: Now,
) -> Response:
    """Give a user another password; 401 if the current one is another, 422 for the new one."""
    await usecases.change(
        transactions,
        accounts,
        passwords,
        policy,
        user_id=user_id,
        current=body.current.get_secret_value(),
        new=body.new.get_secret_value(),
        session_id=body.session_id,
        now=now,
    )
    return Response(status_code=204)


@router.post("/users/{user_id}/confirmation", status_code=202)
async def ask_to_confirm(
    user_id: UUID,
    body: InTenant,
    request: Request,
    who: IsGateway,
    transactions: AllTransactions,
    accounts: AllAccounts,
    now: Now,
) -> Response:
    """Let a user be sent a link that confirms their address."""
    await usecases.ask_to_confirm(
        transactions, accounts, user_id=user_id, tenant_id=body.tenant_id, now=now
    )
    request.app.state.deliver_soon()
    return Response(status_code=202)


@router.post("/users/{user_id}/confirm", status_code=204)
async def confirm(
    user_id: UUID,
    body: Confirmation,
    who: IsGateway,
    transactions: AllTransactions,
    accounts: AllAccounts,
    now: Now,
) -> Response:
    """Note that a user reads what is sent to their address; 401 for a token that is not theirs."""
    await usecases.confirm(
        transactions,
        accounts,
        token=body.token.get_secret_value(),
        user_id=user_id,
        tenant_id=body.tenant_id,
        now=now,
    )
    return Response(status_code=204)


@router.patch("/users/{user_id}", status_code=204)
async def rename(
    user_id: UUID, body: Rename, who: IsGateway, transactions: AllTransactions, now: Now
) -> Response:
    """Let a user be called as they wish in a tenant; 404 if they may not enter it."""
    async with transactions.begin(body.tenant_id) as store:
        await users.rename(store, user_id, name=body.name, at=now)
    return Response(status_code=204)
