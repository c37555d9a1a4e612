"""Devices made ahead, and claimed by whoever mounts them: with the token on their label."""

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.errors import Conflict, NotFound
from libs.common.events.ingest import DeviceCredentialRotated
from services.ingest.domain.device import Device
from services.ingest.domain.token import hash_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.devices import check_place, give_token, say_updated


async def open_claim(
    store: IngestStore, device_id: UUID, claim_token: str, *, lasts: timedelta, at: datetime
) -> datetime:
    """Let a device be claimed, once, by a token; return when that ends. Raises NotFound.

    A token it had before is void. What the device itself can do meanwhile stays as it is.
    """
    device = await store.devices.get(device_id, lock=True)
    await store.claims.open(device_id, hash_token(claim_token), at, at + lasts)
    if device.is_claimed:
        await store.devices.update(
            replace(device, is_claimed=False, updated_at=at, version=device.version + 1)
        )
    return at + lasts


async def claim(
    store: IngestStore,
    claim_token: str,
    token: str,
    *,
    name: str | None,
    group_id: UUID | None,
    at: datetime,
) -> Device:
    """Claim the device that a label belongs to: it gets a name, a place, and a new token.

    All credentials it had are void, so whoever saw them before has nothing. Raises NotFound if the
    token is of no device of the tenant or was used, Conflict if it has expired or the name is taken.
    """
    shown = hash_token(claim_token)
    found = await store.claims.find(shown)
    if found is not None:
        # The device first, as all do; then whether it still waits.
        device = await store.devices.get(found.device_id, lock=True)
        found = await store.claims.find(shown)
    if found is None:
        raise NotFound("no device waits to be claimed by this token")
    if found.expires_at <= at:
        raise Conflict("the claim token has expired; ask for a new label")
    device = replace(
        device,
        name=device.name if name is None else name,
        group_id=device.group_id if group_id is None else group_id,
        is_claimed=True,
        updated_at=at,
        version=device.version + 1,
    )
    path = await check_place(store, device)
    await store.claims.remove(device.id)
    removed = await store.credentials.remove_all(device.id)
    await give_token(store, device.id, token, at=at)
    await store.devices.update(device)
    say_updated(store, device, path, at=at)
    store.emit(
        DeviceCredentialRotated(
            tenant_id=store.tenant_id, at=at, device_id=device.id, credential_ids=removed
        )
    )
    return device
