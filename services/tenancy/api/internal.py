"""What the gateway asks: never forwarded to, and in no public document."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, SecretStr

from libs.common.http.doors import Now
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import AllAccounts, AllTransactions, IsGateway, PasswordHashing
from services.tenancy.domain.account import Account
from services.tenancy.domain.password import MAX_LENGTH
from services.tenancy.usecases import accounts as usecases
from services.tenancy.usecases import invitations

router = APIRouter(prefix="/internal/v1", include_in_schema=False)


class Credentials(Body):
    """What someone logs in with."""

    email: Annotated[str, Field(max_length=1000)]
    password: Annotated[SecretStr, Field(max_length=MAX_LENGTH)]


class Token(Body):
    """What someone who was invited has."""

    token: Annotated[SecretStr, Field(max_length=1000)]


class Acceptance(Token):
    """An invitation, and the password of the account: chosen now, or proved."""

    password: SecretStr


class InvitedOut(Out):
    """Whom an invitation asks into which tenant."""

    tenant_id: UUID
    user_id: UUID
    email: str


class MembershipOut(Out):
    """A tenant the user may enter, what it calls them, and what they may do there (patterns)."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    name: str
    roles: list[str]
    permissions: list[str]


class AccountOut(Out):
    """A user who may log in; the first membership is the oldest."""

    user_id: UUID
    email: str
    platform_admin: bool
    memberships: list[MembershipOut]


@router.post("/credentials/verify")
async def verify_credentials(
    body: Credentials, who: IsGateway, accounts: AllAccounts, passwords: PasswordHashing
) -> AccountOut:
    """Return the user with this address and password; 401 in equal words and time otherwise."""
    return _out(
        await usecases.verify(accounts, passwords, body.email, body.password.get_secret_value())
    )


@router.post("/invitations/find")
async def find_invitation(
    body: Token, who: IsGateway, accounts: AllAccounts, now: Now
) -> InvitedOut:
    """Return whom an invitation is for, so that attempts are counted by account; 401 for none."""
    invited = await invitations.find(accounts, body.token.get_secret_value(), now=now)
    return InvitedOut.model_validate(invited)


@router.post("/invitations/accept")
async def accept_invitation(
    body: Acceptance,
    who: IsGateway,
    transactions: AllTransactions,
    accounts: AllAccounts,
    passwords: PasswordHashing,
    now: Now,
) -> InvitedOut:
    """Let the invited user join; 422 for a password nobody can have, else 401 in equal words."""
    invited = await invitations.accept(
        transactions,
        accounts,
        passwords,
        token=body.token.get_secret_value(),
        password=body.password.get_secret_value(),
        now=now,
    )
    return InvitedOut.model_validate(invited)


@router.get("/users/{user_id}")
async def get_account(user_id: UUID, who: IsGateway, accounts: AllAccounts) -> AccountOut:
    """Return a user who may still log in; 404 for anyone else."""
    return _out(await usecases.open_account(accounts, user_id))


def _out(account: Account) -> AccountOut:
    return AccountOut(
        user_id=account.user_id,
        email=account.email,
        platform_admin=account.is_platform_admin,
        memberships=[MembershipOut.model_validate(m) for m in account.open_memberships],
    )
