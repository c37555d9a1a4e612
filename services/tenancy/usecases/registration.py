"""How people register themselves: they ask, confirm the address, and are members."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID, uuid4

import structlog

from libs.common.db.transactions import Transactions
from libs.common.errors import Conflict, NotFound, Unauthenticated
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.domain.account import Joined
from services.tenancy.domain.invitation import hash_token
from services.tenancy.domain.mail import Purpose
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.password import PasswordPolicy
from services.tenancy.domain.registration import Admits, Registration, RegistrationPolicy
from services.tenancy.domain.role import check_may_hand_out
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.domain.token import CONFIRMED_WITHIN
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.requests import (
    AccountRequest,
    AccountRequests,
    RequestKind,
    new_request,
)
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import users
from services.tenancy.usecases.factors import forget_unproved
from services.tenancy.usecases.passwords import say_changed

log = structlog.get_logger(__name__)


async def set_policy(
    store: TenancyStore,
    tenant_id: UUID,
    policy: RegistrationPolicy,
    *,
    held: Iterable[str],
    at: datetime,
) -> None:
    """Say whom the tenant lets register themselves.

    Raises NotFound; Invalid for an unknown role; Forbidden for one that may do more than the caller;
    Conflict where no mail can be sent, since no address could be confirmed.
    """
    await store.tenants.get(tenant_id)
    if policy.admits is not Admits.NOBODY and not store.mails.sends_mail:
        raise Conflict("nobody can register: this installation has no mail server")
    check_may_hand_out(held, await users.permissions_of_roles(store, [policy.role], "#/role"))
    await store.registration.set_policy(policy, at)


async def ask(
    requests: AccountRequests,
    passwords: Passwords,
    policy: PasswordPolicy,
    *,
    tenant_slug: str,
    email: str,
    password: str,
    name: str,
    now: datetime,
) -> None:
    """Keep what someone registers with, whether or not there is such a tenant or account.

    All that depends on what is there is done later (`settle`): so whoever asks learns nothing, not
    even by the time it takes. Raises Invalid for a password that no account can have.
    """
    policy.check(password, own=(email, name, tenant_slug))
    password_hash = await passwords.hash(password)
    await requests.add(
        new_request(
            RequestKind.REGISTER,
            email,
            now,
            tenant_slug=tenant_slug,
            name=name,
            password_hash=password_hash,
        )
    )


async def settle(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    request: AccountRequest,
    *,
    now: datetime,
) -> None:
    """Let who registered be asked by mail to confirm the address, if the tenant takes them.

    Somebody with an account learns that their address was used; nobody gets two accounts.
    """
    found = await accounts.registration_of(request.tenant_slug or "")
    if found is None or not found[1].lets_in(request.email):
        log.info("somebody registered whom no tenant takes")
        return
    tenant_id, _ = found
    identity = await accounts.identity_of(request.email)
    async with transactions.begin(tenant_id) as store:
        if identity is not None and identity.is_settled:
            await store.mails.post(
                Purpose.ALREADY_REGISTERED, request.email, about=identity.user_id, at=now
            )
            return
        await store.registration.add(
            Registration(
                tenant_id=tenant_id,
                id=request.id,
                email=request.email,
                name=request.name or "",
                password_hash=request.password_hash or "",
                expires_at=now + CONFIRMED_WITHIN,
            )
        )
        await store.mails.post(Purpose.REGISTRATION, request.email, about=request.id, at=now)


async def complete(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    passwords: Passwords,
    *,
    token: str,
    password: str,
    now: datetime,
) -> Joined:
    """Let who registered join the tenant, once; return who it is and where.

    The token proves the address, and the password that who reads there is who registered: else
    somebody could register with another's address and hope that they follow the link.
    Raises Unauthenticated in the same words whatever was wrong.
    No connection is held while the password is hashed.
    """
    registered = await accounts.registered(hash_token(token))
    expected = None
    if registered is not None and registered.expires_at > now:
        expected = registered.password_hash
    if not await passwords.verify(password, expected) or registered is None:
        raise _refusal()
    identity = await accounts.identity_of(registered.email)
    if identity is not None and identity.is_settled:
        raise _refusal()
    account = await accounts.get(identity.user_id) if identity is not None else None
    async with transactions.begin(registered.tenant_id) as store:
        tenant = await store.tenants.get(store.tenant_id, lock=True)
        policy = await store.registration.policy()
        if (
            tenant.status is not TenantStatus.ACTIVE
            or not policy.lets_in(registered.email)
            or await store.registration.take(hash_token(token), now) is None
        ):
            raise _refusal()
        user_id = await store.users.add(uuid4(), email=registered.email, at=now)
        seen = identity.password_hash if identity is not None else None
        if not await store.users.set_password(
            user_id, seen=seen, new_hash=registered.password_hash, proved_at=now
        ):
            raise _refusal()
        await _join(store, user_id, registered, policy, now)
        if account is not None and seen is not None:
            # Whoever chose the former password had not proved the address.
            say_changed(store, account, at=now)
            await forget_unproved(store, account, at=now)
    return Joined(registered.tenant_id, user_id, registered.email)


async def _join(
    store: TenancyStore,
    user_id: UUID,
    registered: Registration,
    policy: RegistrationPolicy,
    now: datetime,
) -> None:
    try:
        member = await store.members.get(user_id)
    except NotFound:
        await users.join(
            store,
            user_id,
            email=registered.email,
            name=registered.name,
            roles=[policy.role],
            at=now,
        )
        return
    if member.status is MemberStatus.DISABLED:
        raise _refusal()
    if member.status is MemberStatus.INVITED:
        # Who reads the address's mail could have followed the invitation as well.
        await store.invitations.void(user_id)
        await users.activate(store, member, at=now)


def _refusal() -> Unauthenticated:
    return Unauthenticated("the link is not valid, or no longer, or the password is another one")
