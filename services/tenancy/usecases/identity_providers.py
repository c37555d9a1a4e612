"""What is done with a tenant's identity providers."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from libs.common.auth.roles import BUILT_IN
from libs.common.errors import Conflict, FieldError, Invalid, PreconditionFailed, invalid
from libs.common.sealing import Sealing
from services.tenancy.domain.identity_provider import (
    DOMAIN,
    IdentityProvider,
    check_settings,
)
from services.tenancy.domain.role import check_may_hand_out, permissions_of
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases.sign_on import secret_about

MOST = 20
"""Providers of one tenant."""


async def create(
    store: TenancyStore,
    provider: IdentityProvider,
    secret: str | None,
    sealing: Sealing,
    *,
    held: Iterable[str],
) -> None:
    """Let the tenant's people come in by a provider.

    Raises Invalid for what cannot be, Forbidden if its groups would get more than the caller has,
    Conflict if there is one of that name or there are too many, Unavailable if this installation
    keeps no secrets and there is one.
    """
    await store.tenants.lock()
    await _check(store, provider, held)
    if await store.identity_providers.count() >= MOST:
        raise Conflict(f"a tenant has {MOST} identity providers at most")
    await store.identity_providers.add(provider, _sealed(store, provider, secret, sealing))


async def change(
    store: TenancyStore,
    provider: IdentityProvider,
    sealing: Sealing,
    *,
    secret: str | None,
    version: int | None,
    held: Iterable[str],
    at: datetime,
) -> IdentityProvider:
    """Save a provider, and its secret if one is given (an empty one is forgotten).

    Raises NotFound, PreconditionFailed if `version` is no longer its; else as `create`. What it gave
    before counts as well: nobody takes away more than they have.
    """
    await store.tenants.lock()
    before = await store.identity_providers.get(provider.id)
    if version is not None and version != before.version:
        raise PreconditionFailed(f"the provider is at version {before.version}, not {version}")
    permissions = tuple(held)
    await _check(store, before, permissions)
    await _check(store, provider, permissions)
    provider = replace(provider, updated_at=at, version=before.version + 1)
    await store.identity_providers.update(provider)
    if secret is not None:
        await store.identity_providers.set_secret(
            provider.id, _sealed(store, provider, secret or None, sealing)
        )
    return provider


async def remove(store: TenancyStore, provider_id: UUID, *, held: Iterable[str]) -> None:
    """Let nobody come in by it any more; who came in stays a member. Raises NotFound, Forbidden."""
    await store.tenants.lock()
    await _check(store, await store.identity_providers.get(provider_id), held)
    await store.identity_providers.remove(provider_id)


async def _check(store: TenancyStore, provider: IdentityProvider, held: Iterable[str]) -> None:
    check_settings(provider.settings)
    wrong = [
        FieldError(f"#/domains/{position}", "is not a domain, in lower case")
        for position, domain in enumerate(provider.domains)
        if not DOMAIN.match(domain)
    ]
    if wrong:
        raise Invalid("A domain is none.", errors=wrong)
    named = {*provider.default_roles, *(r for rs in provider.roles_of_group.values() for r in rs)}
    own = {role.name: role.permissions for role in await store.roles.named(sorted(named))}
    unknown = sorted(name for name in named if name not in BUILT_IN and name not in own)
    if unknown:
        raise invalid("#/roles_of_group", f"there is no such role: {', '.join(unknown)}")
    check_may_hand_out(held, permissions_of(named, own))


def _sealed(
    store: TenancyStore, provider: IdentityProvider, secret: str | None, sealing: Sealing
) -> bytes | None:
    if not secret:
        return None
    return sealing.seal(secret.encode(), secret_about(store.tenant_id, provider.id))
