"""What the gateway asks: never forwarded to, and in no public document."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter
from pydantic import Field, SecretStr

from libs.common import log as logs
from libs.common.db.acting import actor_now
from libs.common.events.audit import AuditEntry
from libs.common.http.doors import Now
from libs.common.http.schemas import Body, Moment, Out
from libs.common.quotas.terms import Resource
from libs.common.refusals import Refusal, Refusals
from services.tenancy.api.deps import (
    AllAccounts,
    AllApiKeys,
    AllRefusals,
    AllTransactions,
    IsGateway,
    PasswordHashing,
    PasswordRules,
)
from services.tenancy.domain.account import Account
from services.tenancy.domain.api_key import Use
from services.tenancy.domain.password import MAX_LENGTH
from services.tenancy.domain.second_factor import Kind
from services.tenancy.usecases import accounts as usecases
from services.tenancy.usecases import api_keys, invitations

router = APIRouter(prefix="/internal/v1", include_in_schema=False)

log = logs.logger(__name__)


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
    tenant_plan: str
    name: str
    roles: list[str]
    permissions: list[str]
    device_groups: list[UUID] | None
    """The groups that their reach is limited to, with all below; null: all devices."""
    second_factor_required: bool
    """Whether this tenant lets nobody in by a password alone."""


class AccountOut(Out):
    """A user who may log in; the first membership is the oldest."""

    user_id: UUID
    email: str
    platform_admin: bool
    factors: list[Kind]
    """By what the user proves themselves the second time; empty: a password is enough."""
    memberships: list[MembershipOut]


class KeyHash(Body):
    """SHA-256 of an API key that somebody shows, in hexadecimal."""

    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FoundKeyOut(Out):
    """What an API key may do, and until when. `good_until` null: without end."""

    tenant_id: UUID
    tenant_plan: str
    key_id: UUID
    scopes: list[str]
    allowed_networks: list[str]
    device_groups: list[UUID] | None
    good_until: datetime | None


class UseIn(Body):
    """When a key was used last, and from where."""

    tenant_id: UUID
    key_id: UUID
    at: Moment
    address: Annotated[str, Field(max_length=64)]


class Uses(Body):
    """Which keys were used lately."""

    uses: Annotated[list[UseIn], Field(max_length=10_000)]


@router.post("/credentials/verify")
async def verify_credentials(
    body: Credentials,
    who: IsGateway,
    accounts: AllAccounts,
    passwords: PasswordHashing,
    refusals: AllRefusals,
) -> AccountOut:
    """Return the user with this address and password; 401 in equal words and time otherwise."""
    try:
        return _out(
            await usecases.verify(accounts, passwords, body.email, body.password.get_secret_value())
        )
    except usecases.WrongPassword as refusal:
        _note_failed_login(refusals, refusal.user_id)
        raise


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
    policy: PasswordRules,
    now: Now,
) -> InvitedOut:
    """Let the invited user join; 422 for a password nobody can have, else 401 in equal words."""
    invited = await invitations.accept(
        transactions,
        accounts,
        passwords,
        policy,
        token=body.token.get_secret_value(),
        password=body.password.get_secret_value(),
        now=now,
    )
    return InvitedOut.model_validate(invited)


class ApiCallsWanted(Body):
    """How many calls of a tenant a gateway wants to let pass."""

    tenant_id: UUID
    wanted: Annotated[int, Field(ge=1, le=1_000_000)]


class ApiCallsOut(Out):
    """How many calls may pass, of how many a day; null: any number."""

    amount: int | None
    most: int | None


@router.post("/api-calls/lease")
async def lease_api_calls(
    body: ApiCallsWanted, who: IsGateway, transactions: AllTransactions, now: Now
) -> ApiCallsOut:
    """Hand a gateway some of the calls that a tenant may make today (UTC)."""
    async with transactions.begin(body.tenant_id) as store:
        lease = await store.quotas.lease(
            Resource.API_CALLS_PER_DAY, body.wanted, now.astimezone(UTC).date()
        )
    return ApiCallsOut.model_validate(lease)


@router.get("/users/{user_id}")
async def get_account(user_id: UUID, who: IsGateway, accounts: AllAccounts) -> AccountOut:
    """Return a user who may still log in; 404 for anyone else."""
    return _out(await usecases.open_account(accounts, user_id))


@router.post("/api-keys/find")
async def find_api_key(body: KeyHash, who: IsGateway, keys: AllApiKeys, now: Now) -> FoundKeyOut:
    """Return what the API key with this hash may do; 404 if it opens nothing, for whatever reason."""
    found = await api_keys.find(keys, bytes.fromhex(body.hash), now=now)
    return FoundKeyOut.model_validate(found)


@router.post("/api-keys/uses", status_code=204)
async def note_uses(body: Uses, who: IsGateway, transactions: AllTransactions) -> None:
    """Note which keys were used lately."""
    await api_keys.note_uses(
        transactions, [Use(u.tenant_id, u.key_id, u.at, u.address) for u in body.uses]
    )


def _note_failed_login(refusals: Refusals, user_id: UUID | None) -> None:
    """Have a failed login recorded where the user belongs; of an unknown address there is nowhere.

    It is written later, by the clock: the answer takes the same time for both.
    """
    if user_id is None:
        log.info("a login failed", user=None)
        return
    log.info("a login failed", user=str(user_id))
    entry = AuditEntry(
        action="login.failed", resource="user", resource_id=str(user_id), outcome="failed"
    )
    # The gateway calls, and says from where it was called itself.
    actor = msgspec.structs.replace(actor_now(), kind="nobody", id=None)
    refusals.note(Refusal(None, user_id, entry), actor)


def _out(account: Account) -> AccountOut:
    return AccountOut(
        user_id=account.user_id,
        email=account.email,
        platform_admin=account.is_platform_admin,
        factors=list(account.terms.factors),
        memberships=[
            MembershipOut(
                tenant_id=m.tenant_id,
                tenant_slug=m.tenant_slug,
                tenant_name=m.tenant_name,
                tenant_plan=m.tenant_plan,
                name=m.name,
                roles=list(m.roles),
                permissions=list(m.permissions),
                device_groups=None if m.device_groups is None else list(m.device_groups),
                second_factor_required=m.tenant_id in account.terms.required_by,
            )
            for m in account.open_memberships
        ],
    )
