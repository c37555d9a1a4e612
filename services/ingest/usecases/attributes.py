"""What is done with devices' attributes."""

from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.errors import Invalid
from libs.common.events.ingest import DeviceAttributesChanged
from services.ingest.domain.attribute import Scope, changed, merged
from services.ingest.domain.payload import parse_json
from services.ingest.store.store import IngestStore


async def change(
    store: IngestStore, device_id: UUID, scope: Scope, patch: dict[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Put a patch into a device's attributes of a scope, and return them. Raises NotFound, Invalid."""
    await store.devices.get(device_id, lock=True)
    before = await store.attributes.get(device_id, scope)
    after = merged(before, patch)
    if names := changed(before, after):
        await store.attributes.set(device_id, scope, after, at)
        store.emit(
            DeviceAttributesChanged(
                tenant_id=store.tenant_id,
                at=at,
                device_id=device_id,
                scope=scope.value,
                names=names,
            )
        )
    return after


async def take_own(store: IngestStore, device_id: UUID, payload: bytes, *, at: datetime) -> None:
    """Take what a device says of itself. Raises Malformed or Invalid if it is no object."""
    patch = parse_json(payload)
    if not isinstance(patch, dict):
        raise Invalid("attributes are an object of names and values")
    await change(store, device_id, Scope.CLIENT, patch, at=at)
