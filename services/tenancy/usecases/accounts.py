"""Who may log in, and the first who can."""

from datetime import datetime
from uuid import UUID

from libs.common.auth.roles import ADMIN
from libs.common.email import normalise_email
from libs.common.errors import Invalid, NotFound, Unauthenticated
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.domain.account import Account
from services.tenancy.domain.tenant import DEFAULT_SLUG
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import tenants, users


class WrongPassword(Unauthenticated):
    """A login was refused. `user_id` is whose it would have been; None: nobody's."""

    def __init__(self, user_id: UUID | None) -> None:
        super().__init__("the email address or the password is wrong")
        self.user_id = user_id


async def verify(accounts: Accounts, passwords: Passwords, email: str, password: str) -> Account:
    """Return the user who has this address and password.

    Raises WrongPassword in the same words and after the same time whether the address is unknown,
    has no password, has another one, or belongs to someone who may enter nowhere.
    No connection is held while the password is hashed.
    """
    try:
        identity = await accounts.identity_of(normalise_email(email))
    except Invalid:
        identity = None
    matches = await passwords.verify(password, identity.password_hash if identity else None)
    if identity is None or not matches:
        raise WrongPassword(identity.user_id if identity else None)
    try:
        return await open_account(accounts, identity.user_id)
    except NotFound:
        raise WrongPassword(identity.user_id) from None


async def open_account(accounts: Accounts, user_id: UUID) -> Account:
    """Return a user who may still log in, as at the refresh of a session. Raises NotFound otherwise."""
    account = await accounts.get(user_id)
    if not account.may_log_in:
        raise NotFound(f"no user {user_id}")
    return account


async def found(
    store: TenancyStore, user_id: UUID, *, email: str, password_hash: str, at: datetime
) -> bool:
    """At the very first start, open the tenant `default` with the platform's first admin in it.

    The transaction is bound to a new tenant's id. Return False, with nothing done, once there is
    any user; of two replicas that start at once, one does it.
    """
    name = email.partition("@")[0]
    if not await store.users.add_first_admin(
        user_id, email=email, password_hash=password_hash, at=at
    ):
        return False
    await tenants.create(store, slug=DEFAULT_SLUG, name="Default", at=at)
    await users.join(store, user_id, email=email, name=name, roles=[ADMIN], at=at)
    return True
