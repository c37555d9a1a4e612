"""How somebody enters a tenant by its identity provider.

What a provider says counts in the tenant that chose it and nowhere else: whoever runs a provider
can make it say anything. So it makes members and their roles, and never sets a password, confirms
an address or opens a session in another tenant.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import msgspec

from libs.common.db.transactions import Transactions
from libs.common.email import normalise_email
from libs.common.errors import Conflict, Invalid, NotFound, Unauthenticated
from libs.common.sealing import Sealing, Unsealable
from services.tenancy.adapters import saml
from services.tenancy.adapters.ldap import Directories
from services.tenancy.adapters.oidc import Attempt, OidcProviders
from services.tenancy.domain.identity_provider import (
    IdentityProvider,
    LdapSettings,
    OidcSettings,
    SamlSettings,
    Vouched,
)
from services.tenancy.domain.member import Member, MemberStatus
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import users

WAY_TAKES = timedelta(minutes=10)
"""How long a browser may take to log in at the provider."""


class Door(msgspec.Struct, frozen=True):
    """Where the provider sends the browser back to, and what we are called there."""

    oidc_redirect_uri: str
    saml_consumer_url: str
    saml_entity_id: str


class _Kept(msgspec.Struct, frozen=True):
    """What belongs to one browser's way. `browser` is the hash of what only that browser has."""

    nonce: str
    verifier: str
    request_id: str
    browser: str
    return_to: str
    door: Door


@dataclass(frozen=True, slots=True)
class Entered:
    """Who came in where, and the address within the console that they wanted."""

    user_id: UUID
    tenant_id: UUID
    return_to: str


class SignOn:
    """The way in by a tenant's identity providers."""

    def __init__(
        self,
        transactions: Transactions[TenancyStore],
        oidc: OidcProviders,
        directories: Directories,
        sealing: Sealing,
    ) -> None:
        self._transactions = transactions
        self._oidc = oidc
        self._directories = directories
        self._sealing = sealing

    async def begin(
        self,
        tenant_id: UUID,
        provider_id: UUID,
        door: Door,
        *,
        browser: str,
        return_to: str,
        now: datetime,
    ) -> str:
        """Return the address at the provider that the browser is sent to.

        `browser` is the hash of a secret that this browser keeps. Raises NotFound for a provider that
        there is not, Conflict for one to which no browser is sent, Unavailable.
        """
        kept = _Kept(
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            # An xs:ID begins with a letter or an underline.
            request_id=f"_{secrets.token_hex(20)}",
            browser=browser,
            return_to=return_to,
            door=door,
        )
        token = secrets.token_urlsafe(32)
        state = f"{tenant_id.hex}.{token}"
        async with self._transactions.begin(tenant_id) as store:
            provider = await _enabled(store, provider_id)
            state_hash = _hash(token)
            sealed = self._sealing.seal(msgspec.msgpack.encode(kept), _about(tenant_id, state_hash))
            await store.sign_ons.keep(state_hash, provider_id, sealed, now + WAY_TAKES)
        match provider.settings:
            case OidcSettings():
                return await self._oidc.begin(provider.settings, _attempt(state, kept))
            case SamlSettings():
                return saml.sign_in_address(
                    provider.settings,
                    _service(door),
                    request_id=kept.request_id,
                    state=state,
                    at=now,
                )
            case LdapSettings():
                raise Conflict("this is a directory: log in with a name and a password")

    async def return_by_oidc(
        self, answer: Mapping[str, str], *, browser: str, now: datetime
    ) -> Entered:
        """Let somebody in by what their browser brought back from an OpenID provider.

        Raises Unauthenticated, Unavailable.
        """

        async def judge(provider: IdentityProvider, secret: str, kept: _Kept) -> Vouched:
            if not isinstance(provider.settings, OidcSettings):
                raise _lost()
            attempt = _attempt(answer["state"], kept)
            return await self._oidc.finish(provider.settings, secret, attempt, answer)

        return await self._return(answer.get("state", ""), browser, judge, now)

    async def return_by_saml(
        self, response: str, state: str, *, browser: str, now: datetime
    ) -> Entered:
        """Let somebody in by what their browser brought back from a SAML provider. Raises as above."""

        async def judge(provider: IdentityProvider, secret: str, kept: _Kept) -> Vouched:
            if not isinstance(provider.settings, SamlSettings):
                raise _lost()
            return saml.read_response(
                provider.settings,
                _service(kept.door),
                response,
                request_id=kept.request_id,
                now=now,
            )

        return await self._return(state, browser, judge, now)

    async def log_in(
        self, tenant_id: UUID, provider_id: UUID, login: str, password: str, *, now: datetime
    ) -> Entered:
        """Let somebody in who proves their password to the tenant's directory.

        Raises NotFound for a directory that there is not, Unauthenticated, Unavailable.
        """
        async with self._transactions.begin(tenant_id) as store:
            provider = await _enabled(store, provider_id)
            secret = await self._secret(store, provider)
        if not isinstance(provider.settings, LdapSettings):
            raise NotFound(f"no directory {provider_id}")
        vouched = await self._directories.prove(provider.settings, secret, login, password)
        return await self._enter(tenant_id, provider, vouched, "", now)

    async def _return(
        self,
        state: str,
        browser: str,
        judge: Callable[[IdentityProvider, str, _Kept], Awaitable[Vouched]],
        now: datetime,
    ) -> Entered:
        tenant, _, token = state.partition(".")
        try:
            tenant_id = UUID(hex=tenant)
        except ValueError:
            raise _lost() from None
        state_hash = _hash(token)
        async with self._transactions.begin(tenant_id) as store:
            taken = await store.sign_ons.take(state_hash, now)
            if taken is None:
                raise _lost()
            try:
                provider = await _enabled(store, taken[0])
            except NotFound:
                raise _lost() from None
            secret = await self._secret(store, provider)
        try:
            opened = self._sealing.open(taken[1], _about(tenant_id, state_hash))
        except Unsealable:
            raise _lost() from None
        kept = msgspec.msgpack.decode(opened, type=_Kept)
        # Otherwise somebody could have another's browser log in as themselves.
        if not secrets.compare_digest(kept.browser, browser):
            raise _lost()
        vouched = await judge(provider, secret, kept)
        return await self._enter(tenant_id, provider, vouched, kept.return_to, now)

    async def _secret(self, store: TenancyStore, provider: IdentityProvider) -> str:
        sealed = await store.identity_providers.sealed_secret(provider.id)
        if sealed is None:
            return ""
        return self._sealing.open(sealed, secret_about(store.tenant_id, provider.id)).decode()

    async def _enter(
        self,
        tenant_id: UUID,
        provider: IdentityProvider,
        vouched: Vouched,
        return_to: str,
        now: datetime,
    ) -> Entered:
        try:
            email = normalise_email(vouched.email)
        except Invalid:
            raise Unauthenticated("the identity provider tells no email address") from None
        provider.check_vouches_for(email)
        roles = provider.roles_for(vouched.groups)
        if not roles:
            raise Unauthenticated(f"none of your groups at {provider.name} has a role here")
        async with self._transactions.begin(tenant_id) as store:
            member = await _settle(store, provider, vouched, email, roles, now)
        return Entered(member.id, tenant_id, return_to)


def secret_about(tenant_id: UUID, provider_id: UUID) -> bytes:
    """Return what a provider's secret is sealed about."""
    return b"identity provider " + tenant_id.bytes + provider_id.bytes


async def _settle(
    store: TenancyStore,
    provider: IdentityProvider,
    vouched: Vouched,
    email: str,
    roles: tuple[str, ...],
    now: datetime,
) -> Member:
    """Make whom the provider vouches for a member with just these roles. Raises Unauthenticated."""
    tenant = await store.tenants.get(store.tenant_id, lock=True)
    if tenant.status is not TenantStatus.ACTIVE:
        raise Unauthenticated("nobody may enter this tenant now")
    user_id = await store.identities.user_of(provider.id, vouched.subject)
    member: Member | None
    if user_id is not None:
        member = await store.members.get(user_id)
    else:
        member = await store.members.with_email(email)
    if member is None:
        user_id = await store.users.add(uuid4(), email=email, at=now)
        member = await users.join(
            store, user_id, email=email, name=vouched.name, roles=roles, at=now
        )
    else:
        member = await _admit(store, member, roles, now)
    if await store.identities.user_of(provider.id, vouched.subject) is None:
        await store.identities.add(provider.id, vouched.subject, member.id, now)
    return member


async def _admit(
    store: TenancyStore, member: Member, roles: tuple[str, ...], now: datetime
) -> Member:
    """Let a member in with just these roles, whatever they had: else the provider could be anyone's way up."""
    if member.status is MemberStatus.DISABLED:
        raise Unauthenticated("this tenant does not let you in")
    if member.status is MemberStatus.INVITED:
        await store.invitations.void(member.id)
        member = replace(
            member,
            roles=roles,
            status=MemberStatus.ACTIVE,
            updated_at=now,
            version=member.version + 1,
        )
        await store.members.update(member)
        users.say_joined(store, member, now)
        return member
    if member.roles == roles:
        return member
    try:
        return await users.update(
            store,
            member.id,
            name=None,
            roles=roles,
            status=None,
            version=None,
            held=("*",),
            within=None,
            at=now,
        )
    except Conflict:
        raise Unauthenticated(
            "you are the last administrator of this tenant, and your groups would take that from"
            " you: log in with your password"
        ) from None


async def _enabled(store: TenancyStore, provider_id: UUID) -> IdentityProvider:
    provider = await store.identity_providers.get(provider_id)
    if not provider.is_enabled:
        raise NotFound(f"no identity provider {provider_id}")
    return provider


def _attempt(state: str, kept: _Kept) -> Attempt:
    return Attempt(state, kept.nonce, kept.verifier, kept.door.oidc_redirect_uri)


def _service(door: Door) -> saml.Service:
    return saml.Service(door.saml_entity_id, door.saml_consumer_url)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _about(tenant_id: UUID, state_hash: bytes) -> bytes:
    return b"sign-on " + tenant_id.bytes + state_hash


def _lost() -> Unauthenticated:
    return Unauthenticated(
        "this login was not begun in this browser, was used already, or took too long: begin again"
    )
