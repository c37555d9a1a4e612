"""How users change their password, or get another when they forgot it; and prove their address."""

from datetime import datetime
from uuid import UUID

from libs.common.db.transactions import Transactions
from libs.common.errors import Unauthenticated, invalid
from libs.common.events.tenancy import UserPasswordChanged
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.domain.account import Account
from services.tenancy.domain.invitation import hash_token
from services.tenancy.domain.mail import Purpose
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.password import PasswordPolicy
from services.tenancy.domain.token import TokenPurpose
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.requests import AccountRequest
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases.factors import forget_unproved


async def settle_forgotten(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    request: AccountRequest,
    *,
    now: datetime,
) -> None:
    """Let a user who forgot the password be sent a link, if there is one who may log in by a password."""
    identity = await accounts.identity_of(request.email)
    if identity is None or identity.password_hash is None:
        return
    account = await accounts.get(identity.user_id)
    if not account.may_log_in:
        return
    async with transactions.begin(account.open_memberships[0].tenant_id) as store:
        await store.mails.post(Purpose.PASSWORD_RESET, account.email, about=account.user_id, at=now)


async def reset(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    passwords: Passwords,
    policy: PasswordPolicy,
    *,
    token: str,
    password: str,
    now: datetime,
) -> Account:
    """Give a user the password they choose, by a token that went to their address; return who it is.

    All their sessions end, in every tenant. Whoever has the token reads what is sent to the address,
    so that is proved; if it was not before, second factors are void that somebody else may have set
    up. Raises Unauthenticated for a token that is unknown, used or too old; Invalid
    for a password that cannot be.
    No connection is held while the password is hashed.
    """
    holder = await accounts.holder_of(hash_token(token))
    if holder is None or holder.purpose is not TokenPurpose.RESET or holder.expires_at <= now:
        raise _refusal()
    account = await accounts.get(holder.user_id)
    if not account.may_log_in:
        raise _refusal()
    policy.check(password, own=account.known_as)
    new_hash = await passwords.hash(password)
    async with transactions.begin(account.open_memberships[0].tenant_id) as store:
        used = await store.users.use_token(hash_token(token), TokenPurpose.RESET, now)
        if used != account.user_id or not await store.users.set_password(
            account.user_id, seen=holder.password_hash, new_hash=new_hash, proved_at=now
        ):
            raise _refusal()
        if not account.is_verified:
            await forget_unproved(store, account, at=now)
        await _tell(store, account, at=now)
    return account


async def change(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    passwords: Passwords,
    policy: PasswordPolicy,
    *,
    user_id: UUID,
    current: str,
    new: str,
    session_id: UUID | None,
    now: datetime,
) -> None:
    """Give a user another password; their sessions end, but for the one given.

    Raises Unauthenticated if the current one is another; Invalid for a new one that cannot be, or is
    no new one.
    No connection is held while a password is hashed.
    """
    account = await accounts.get(user_id)
    identity = await accounts.identity_of(account.email)
    password_hash = identity.password_hash if identity else None
    if not await passwords.verify(current, password_hash) or not account.may_log_in:
        raise Unauthenticated("the current password is another one")
    policy.check(new, own=account.known_as, pointer="#/new")
    if await passwords.verify(new, password_hash):
        raise invalid("#/new", "is the password that you have")
    new_hash = await passwords.hash(new)
    async with transactions.begin(account.open_memberships[0].tenant_id) as store:
        if not await store.users.set_password(user_id, seen=password_hash, new_hash=new_hash):
            raise Unauthenticated("the current password is another one")
        await _tell(store, account, spared=session_id, at=now)


async def ask_to_confirm(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    *,
    user_id: UUID,
    tenant_id: UUID,
    now: datetime,
) -> None:
    """Let a user be sent a link that confirms their address, unless that is proved already."""
    account = await accounts.get(user_id)
    if account.is_verified:
        return
    async with transactions.begin(tenant_id) as store:
        await store.mails.post(Purpose.CONFIRM_ADDRESS, account.email, about=user_id, at=now)


async def confirm(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    *,
    token: str,
    user_id: UUID,
    tenant_id: UUID,
    now: datetime,
) -> None:
    """Note that a user who is logged in reads what is sent to their address.

    It must be their own token: who opens a link that somebody else had sent to them confirms nothing.
    Raises Unauthenticated for any other.
    """
    holder = await accounts.holder_of(hash_token(token))
    if holder is None or holder.user_id != user_id:
        raise _refusal()
    async with transactions.begin(tenant_id) as store:
        used = await store.users.use_token(hash_token(token), TokenPurpose.CONFIRM, now)
        if used != user_id or not await store.users.set_password(
            user_id, seen=holder.password_hash, new_hash=None, proved_at=now
        ):
            raise _refusal()


def say_changed(
    store: TenancyStore, account: Account, *, spared: UUID | None = None, at: datetime
) -> None:
    """Say in every tenant of a user's that they have another password: sessions end, but for `spared`."""
    for membership in account.memberships:
        if membership.status is MemberStatus.INVITED:
            continue  # nobody there has heard of them
        store.emit(
            UserPasswordChanged(
                tenant_id=membership.tenant_id,
                at=at,
                user_id=account.user_id,
                spared_session_id=spared,
            )
        )


async def _tell(
    store: TenancyStore, account: Account, *, spared: UUID | None = None, at: datetime
) -> None:
    say_changed(store, account, spared=spared, at=at)
    await store.mails.post(Purpose.PASSWORD_CHANGED, account.email, about=account.user_id, at=at)


def _refusal() -> Unauthenticated:
    return Unauthenticated("the link is not valid, or no longer")
