"""What the gateway asks: never forwarded to, and in no public document."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, SecretStr

from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import AllAccounts, IsGateway, PasswordHashing
from services.tenancy.domain.account import Account
from services.tenancy.domain.password import MAX_LENGTH
from services.tenancy.usecases import accounts as usecases

router = APIRouter(prefix="/internal/v1", include_in_schema=False)


class Credentials(Body):
    """What someone logs in with."""

    email: Annotated[str, Field(max_length=1000)]
    password: Annotated[SecretStr, Field(max_length=MAX_LENGTH)]


class MembershipOut(Out):
    """A tenant the user may enter, and what they may do there (patterns)."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    roles: list[str]
    permissions: list[str]


class AccountOut(Out):
    """A user who may log in; the first membership is the oldest."""

    user_id: UUID
    email: str
    name: str
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


@router.get("/users/{user_id}")
async def get_account(user_id: UUID, who: IsGateway, accounts: AllAccounts) -> AccountOut:
    """Return a user who may still log in; 404 for anyone else."""
    return _out(await usecases.open_account(accounts, user_id))


def _out(account: Account) -> AccountOut:
    return AccountOut(
        user_id=account.user_id,
        email=account.email,
        name=account.name,
        platform_admin=account.is_platform_admin,
        memberships=[MembershipOut.model_validate(m) for m in account.open_memberships],
    )
