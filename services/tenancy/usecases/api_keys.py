"""What is done with a tenant's API keys.

Nobody hands out, or takes away, more than they hold themselves. A key manages no key but itself:
who has stolen one makes no others with it.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import TypedDict
from uuid import UUID

from libs.common.addresses import Network
from libs.common.auth.api_key import NewSecret, new_secret
from libs.common.auth.principal import Kind, Principal
from libs.common.db.transactions import Transactions
from libs.common.errors import Conflict, Forbidden, NotFound, PreconditionFailed
from libs.common.events.tenancy import ApiKeyChanged, ApiKeyCreated, ApiKeyRevoked
from libs.common.quotas.terms import Resource
from services.tenancy.domain.api_key import (
    ApiKey,
    FoundKey,
    Use,
    check_end,
    check_reach,
    check_scopes,
)
from services.tenancy.domain.role import check_may_hand_out
from services.tenancy.store.api_keys import ApiKeyHolders
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import usage


class Changes(TypedDict, total=False):
    """What is to change of a key; what is left out stays."""

    name: str
    scopes: tuple[str, ...]
    allowed_networks: tuple[Network, ...]
    device_groups: frozenset[UUID] | None
    expires_at: datetime | None


async def create(
    store: TenancyStore, key: ApiKey, secret: NewSecret, *, by: Principal, most: int
) -> ApiKey:
    """Make a key, of which the tenant has `most` at most.

    Raises Invalid for a scope that there is not, or an end that is past; Forbidden for what is
    beyond the caller's own permissions or devices, and for a key; Conflict if there are enough,
    QuotaExceeded if the tenant's plan allows no more.
    """
    if by.kind is Kind.API_KEY:
        raise Forbidden("an API key makes no other keys")
    check_scopes(key.scopes)
    check_end(key.expires_at, key.created_at)
    check_may_hand_out(by.permissions, key.scopes)
    check_reach(by.groups, key.device_groups)
    await store.tenants.lock()
    count = await store.api_keys.count() + 1
    await store.quotas.check(Resource.API_KEYS, count)
    if count > most:
        raise Conflict(f"the tenant has {most} API keys, which is as many as it may have")
    await store.api_keys.add(key, secret)
    await usage.count_own(store, Resource.API_KEYS, count, at=key.created_at)
    store.emit(
        ApiKeyCreated(tenant_id=store.tenant_id, at=key.created_at, key_id=key.id, name=key.name)
    )
    return await store.api_keys.get(key.id)


async def change(
    store: TenancyStore,
    key_id: UUID,
    changes: Changes,
    *,
    version: int | None,
    by: Principal,
    at: datetime,
) -> ApiKey:
    """Change what is given of a key. It takes effect within seconds, in what is under way as well.

    Raises NotFound; PreconditionFailed if `version` is given and is no longer the key's; Invalid and
    Forbidden as above, also for what the key may do before.
    """
    before = await _held(store, key_id, by)
    if by.kind is Kind.API_KEY:
        raise Forbidden("an API key cannot change what it may do itself")
    if version is not None and version != before.version:
        raise PreconditionFailed(f"the API key is at version {before.version}, not {version}")
    after = replace(before, **changes, updated_at=at, version=before.version + 1)
    check_scopes(after.scopes)
    if after.expires_at != before.expires_at:
        check_end(after.expires_at, at)
    check_may_hand_out(by.permissions, after.scopes)
    check_reach(by.groups, after.device_groups)
    await _save(store, after, at)
    return after


async def rotate(
    store: TenancyStore, key_id: UUID, *, overlap: timedelta, by: Principal, at: datetime
) -> tuple[ApiKey, NewSecret]:
    """Give a key a new secret; the present one is good for the `overlap`, and any before is void.

    A key may do so with itself. Raises NotFound, and Forbidden as above.
    """
    before = await _held(store, key_id, by)
    secret = new_secret(before.handle)
    after = replace(before, overlap_until=at + overlap, updated_at=at, version=before.version + 1)
    await store.api_keys.renew(after, secret)
    store.emit(ApiKeyChanged(tenant_id=store.tenant_id, at=at, key_id=key_id))
    return after, secret


async def revoke(store: TenancyStore, key_id: UUID, *, by: Principal, at: datetime) -> None:
    """Void a key at once. A key may do so with itself. Raises NotFound, and Forbidden as above."""
    await _held(store, key_id, by)
    await store.tenants.lock()
    await store.api_keys.remove(key_id)
    await usage.count_own(store, Resource.API_KEYS, await store.api_keys.count(), at=at)
    store.emit(ApiKeyRevoked(tenant_id=store.tenant_id, at=at, key_id=key_id))


async def find(holders: ApiKeyHolders, key_hash: bytes, *, now: datetime) -> FoundKey:
    """Return what a key may do now. Raises NotFound if it is nobody's, over, or its tenant closed."""
    found = await holders.holder_of(key_hash)
    if found is None or not found.is_good(now):
        raise NotFound("no such API key")
    return found


async def note_uses(transactions: Transactions[TenancyStore], uses: Sequence[Use]) -> None:
    """Note when keys of several tenants were used."""
    # In one order everywhere, so that two gateways never wait for each other.
    ordered = sorted(uses, key=lambda use: (use.tenant_id, use.key_id))
    for tenant_id, theirs in groupby(ordered, key=lambda use: use.tenant_id):
        async with transactions.begin(tenant_id) as store:
            await store.api_keys.note_uses(theirs)


async def _save(store: TenancyStore, key: ApiKey, at: datetime) -> None:
    await store.api_keys.update(key)
    store.emit(ApiKeyChanged(tenant_id=store.tenant_id, at=at, key_id=key.id))


async def _held(store: TenancyStore, key_id: UUID, by: Principal) -> ApiKey:
    """Return a key that the caller may manage, locked until the transaction ends."""
    key = await store.api_keys.lock(key_id)
    if by.kind is Kind.API_KEY and by.subject != key_id:
        raise Forbidden("an API key manages no other keys")
    check_may_hand_out(by.permissions, key.scopes)
    check_reach(by.groups, key.device_groups)
    return key
