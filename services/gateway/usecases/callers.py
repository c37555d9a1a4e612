"""Who calls: an access token is verified once, and exchanged for what the services believe."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from libs.common.auth.principal import LIFETIME, Principal
from libs.common.clock import Clock
from libs.common.errors import Unauthenticated
from services.gateway.domain.access_token import Access, key_id_of, verify_access
from services.gateway.domain.account import Account, Membership
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.keyring import Keyring

RENEWED_BEFORE = timedelta(seconds=15)
"""A principal is signed anew while it still holds this long."""
REMEMBERED = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """A principal, and the token that vouches for it until `renew_at` (machine's time)."""

    principal: Principal
    principal_token: bytes
    renew_at: datetime
    roles: frozenset[str] = frozenset()
    """By name, and the tenant's plan: which limits hold may depend on them."""
    plan: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller(Vouched):
    """A user who calls with an access token."""

    access: Access


class Callers:
    """The callers this process knows, by their access token."""

    def __init__(self, keyring: Keyring, accounts: Accounts, clock: Clock) -> None:
        self._keyring = keyring
        self._accounts = accounts
        self._clock = clock
        self._by_token: dict[str, Caller] = {}
        self._revoked: dict[UUID, datetime] = {}
        self._generation = 0
        self.on_revoked: list[Callable[[UUID], None]] = []
        """Called with a session's id when what it has open must be cut."""
        self.on_changed: list[Callable[[UUID, UUID | None], None]] = []
        """Called with a tenant and a user (None: all) whose permissions may have changed."""

    async def caller(self, token: str) -> Caller:
        """Return who calls with this access token.

        Raises Unauthenticated if it is not valid or no longer, Unavailable if it cannot be known
        now what the user may do.
        """
        known = self._by_token.get(token)
        if known is not None:
            if known.renew_at > datetime.now(UTC) and known.access.expires_at > self._clock.now():
                return known
            del self._by_token[token]
        access = known.access if known is not None else await self._verify(token)
        if access.expires_at <= self._clock.now():
            raise Unauthenticated("the access token has expired")
        while True:
            generation = self._generation
            caller = await self._vouch(access)
            if generation == self._generation:
                break
        if len(self._by_token) >= REMEMBERED:
            self._by_token.clear()
        self._by_token[token] = caller
        return caller

    def is_revoked(self, session_id: UUID) -> bool:
        """Whether a session has been revoked lately."""
        return session_id in self._revoked

    async def principal_of(self, access: Access) -> Principal:
        """Return what a session's user may do now. Raises as `caller`."""
        account, membership = await self._membership_of(access)
        return _principal(access, account, membership)

    def revoke(self, session_id: UUID, until: datetime) -> None:
        """Believe no token of a session any more; the last of them expires at `until`."""
        if session_id in self._revoked:
            return
        self._generation += 1
        self._revoked[session_id] = until
        for token, caller in list(self._by_token.items()):
            if caller.access.session_id == session_id:
                del self._by_token[token]
        for cut in self.on_revoked:
            cut(session_id)

    def look_again(self, tenant_id: UUID) -> None:
        """Look up anew what is said of a tenant; what its users may do is as before."""
        self._generation += 1
        self._accounts.forget_tenant(tenant_id)
        for token, caller in list(self._by_token.items()):
            if caller.access.tenant_id == tenant_id:
                del self._by_token[token]

    def change(self, tenant_id: UUID, user_id: UUID | None = None) -> None:
        """Look up anew what a user, or all of a tenant, may do."""
        self._generation += 1
        if user_id is None:
            self._accounts.forget_tenant(tenant_id)
        else:
            self._accounts.forget(user_id)
        for token, caller in list(self._by_token.items()):
            if caller.access.tenant_id == tenant_id and user_id in (None, caller.access.user_id):
                del self._by_token[token]
        for tell in self.on_changed:
            tell(tenant_id, user_id)

    def forget_all(self) -> None:
        """Look up anew what anybody may do: some changes may not have been told."""
        self._generation += 1
        self._accounts.forget_all()
        self._by_token.clear()

    def forget_expired(self) -> None:
        """Drop revocations whose tokens have all expired."""
        now = self._clock.now()
        for session_id in [s for s, until in self._revoked.items() if until <= now]:
            del self._revoked[session_id]

    async def _verify(self, token: str) -> Access:
        kid = key_id_of(token)
        if kid not in self._keyring.public:
            await self._keyring.key(kid)
        return verify_access(token, self._keyring.public, now=self._clock.now())

    async def _vouch(self, access: Access) -> Caller:
        account, membership = await self._membership_of(access)
        principal = _principal(access, account, membership)
        # Services judge a principal by the machine's own clock.
        now = datetime.now(UTC)
        token = self._keyring.signer().sign(principal, now)
        return Caller(
            access=access,
            principal=principal,
            principal_token=token.encode(),
            renew_at=now + LIFETIME - RENEWED_BEFORE,
            roles=frozenset(membership.roles),
            plan=membership.tenant_plan,
        )

    async def _membership_of(self, access: Access) -> tuple[Account, Membership]:
        if access.session_id in self._revoked:
            raise Unauthenticated("the session has ended")
        account = await self._accounts.get(access.user_id)
        membership = account.membership_in(access.tenant_id) if account else None
        if account is None or membership is None:
            raise Unauthenticated("the user may not enter this tenant any more")
        return account, membership


def _principal(access: Access, account: Account, membership: Membership) -> Principal:
    return Principal(
        subject=access.user_id,
        tenant_id=access.tenant_id,
        permissions=membership.permissions,
        # A tenant's provider can be made to say anything: it makes nobody an admin of all tenants.
        platform_admin=account.is_platform_admin and not access.by_provider,
        session_id=access.session_id,
        groups=membership.device_groups,
    )
