"""How an invitation is accepted, by whoever has its token."""

from dataclasses import replace
from datetime import datetime

from libs.common.db.transactions import Transactions
from libs.common.errors import Unauthenticated
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.domain.account import Invited
from services.tenancy.domain.invitation import hash_token
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.password import check_new_password
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import users


async def find(accounts: Accounts, token: str, *, now: datetime) -> Invited:
    """Return whom the token invites. Raises Unauthenticated if it is unknown, used or too old."""
    invited = await accounts.invited(hash_token(token))
    if invited is None or invited.expires_at <= now:
        raise _refusal()
    return invited


async def accept(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    passwords: Passwords,
    *,
    token: str,
    password: str,
    now: datetime,
) -> Invited:
    """Let the invited user join the tenant, once; return who it is.

    Who has no password yet gets this one. Who has one proves it: the token alone opens nobody's
    account. Raises Invalid for a password that no account can have; Unauthenticated in the same
    words whatever was wrong else.
    No connection is held while the password is hashed.
    """
    # Before the look-up: it must not tell whether the account has a password already.
    check_new_password(password)
    invited = await find(accounts, token, now=now)
    first_hash = None
    if invited.password_hash is None:
        first_hash = await passwords.hash(password)
    elif not await passwords.verify(password, invited.password_hash):
        raise _refusal()
    async with transactions.begin(invited.tenant_id) as store:
        await _join(store, invited, hash_token(token), first_hash, at=now)
    return invited


async def _join(
    store: TenancyStore,
    invited: Invited,
    token_hash: bytes,
    first_hash: str | None,
    *,
    at: datetime,
) -> None:
    """Use the invitation up, if all is still as it was when the password was looked at."""
    tenant = await store.tenants.get(store.tenant_id, lock=True)
    if (
        tenant.status is not TenantStatus.ACTIVE
        or await store.invitations.take(token_hash, at) != invited.user_id
        or not await store.users.settle_password(
            invited.user_id, seen=invited.password_hash, first_hash=first_hash
        )
    ):
        raise _refusal()
    member = await store.members.get(invited.user_id)
    member = replace(member, status=MemberStatus.ACTIVE, updated_at=at, version=member.version + 1)
    await store.members.update(member)
    users.say_joined(store, member, at)


def _refusal() -> Unauthenticated:
    return Unauthenticated(
        "the invitation is not valid, or no longer, or the password is not that of the account"
    )
