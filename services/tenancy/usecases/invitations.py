"""How an invitation is accepted, by whoever has its token."""

from datetime import datetime

from libs.common.db.transactions import Transactions
from libs.common.errors import Forbidden, Unauthenticated
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.domain.account import Account, Invited
from services.tenancy.domain.invitation import hash_token
from services.tenancy.domain.password import PasswordPolicy
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import users
from services.tenancy.usecases.factors import forget_unproved
from services.tenancy.usecases.passwords import say_changed


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
    policy: PasswordPolicy,
    *,
    token: str,
    password: str,
    now: datetime,
) -> Invited:
    """Let the invited user join the tenant, once; return who it is.

    Who has no password yet gets this one. Who has one proves it: the token alone opens nobody's
    account. But whoever shows the token that went to an address nobody had proved reads what is
    sent there, and whoever chose the password may not: it becomes this one, what they have
    open ends, and their second factors are void.
    Raises Invalid for a password that no account can have; Forbidden if the address has to be
    confirmed first; Unauthenticated in the same words whatever was wrong else.
    No connection is held while the password is hashed.
    """
    # Before the look-up: it must not tell whether the account has a password already.
    policy.check(password)
    invited = await find(accounts, token, now=now)
    account = await accounts.get(invited.user_id)
    # Of other tenants' names nothing must show here: who invites could try them.
    here = (m.names for m in account.memberships if m.tenant_id == invited.tenant_id)
    policy.check(password, own=(invited.email, *(name for names in here for name in names)))
    new_hash = None
    if invited.password_hash is None:
        new_hash = await passwords.hash(password)
    elif not await passwords.verify(password, invited.password_hash):
        if invited.is_verified or not invited.is_mailed:
            raise _refusal()
        new_hash = await passwords.hash(password)
    async with transactions.begin(invited.tenant_id) as store:
        await _join(store, invited, account, hash_token(token), new_hash, at=now)
    return invited


async def _join(
    store: TenancyStore,
    invited: Invited,
    account: Account,
    token_hash: bytes,
    new_hash: str | None,
    *,
    at: datetime,
) -> None:
    """Use the invitation up, if all is still as it was when the password was looked at."""
    proved_at = at if invited.is_mailed else None
    if (
        store.mails.sends_mail
        and invited.password_hash is not None
        and not (invited.is_verified or invited.is_mailed)
    ):
        raise Forbidden(
            "nobody has confirmed the address of this account yet: accept by the link in the mail"
            " that was sent to it, or confirm the address first"
        )
    tenant = await store.tenants.get(store.tenant_id, lock=True)
    if (
        tenant.status is not TenantStatus.ACTIVE
        or await store.invitations.take(token_hash, at) != invited.user_id
        or not await store.users.set_password(
            invited.user_id, seen=invited.password_hash, new_hash=new_hash, proved_at=proved_at
        )
    ):
        raise _refusal()
    if new_hash is not None and invited.password_hash is not None:
        say_changed(store, account, at=at)
        await forget_unproved(store, account, at=at)
    await users.activate(store, await store.members.get(invited.user_id), at=at)


def _refusal() -> Unauthenticated:
    return Unauthenticated(
        "the invitation is not valid, or no longer, or the password is not that of the account"
    )
