"""What is done with profiles, and how their devices' points are taken accordingly at once."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.db.transactions import Transactions
from libs.common.errors import Conflict, NotFound, PreconditionFailed
from libs.common.events.ingest import DeviceProfileChanged
from services.ingest.domain.device import Source
from services.ingest.domain.profile import DeviceProfile, Profile
from services.ingest.store.store import IngestStore
from services.ingest.usecases.sources import Sources

MOST_PROFILES = 1_000
"""Of a tenant."""
READ_AT_ONCE = 1_000
"""Devices whose profiles are read anew with one query, at most."""


async def create(
    store: IngestStore,
    profile_id: UUID,
    *,
    name: str,
    description: str,
    declares: dict[str, Any],
    at: datetime,
) -> DeviceProfile:
    """Make a profile. Raises Conflict if the name is taken, or there are too many."""
    if await store.profiles.count() >= MOST_PROFILES:
        raise Conflict(f"a tenant has {MOST_PROFILES} profiles at most")
    profile = DeviceProfile(
        name, description, Profile(id=profile_id, version=1, **declares), at, at
    )
    await store.profiles.add(profile)
    return profile


async def update(
    store: IngestStore,
    profile_id: UUID,
    changes: dict[str, Any],
    declares: dict[str, Any],
    *,
    version: int | None,
    at: datetime,
) -> DeviceProfile:
    """Change what is given of a profile.

    Raises NotFound, Conflict if its new name is taken, PreconditionFailed if `version` is given and
    is no longer the profile's.
    """
    profile = await store.profiles.get(profile_id, lock=True)
    was = profile.declares.version
    if version is not None and version != was:
        raise PreconditionFailed(f"the profile is at version {was}, not {version}")
    profile = replace(
        profile,
        **changes,
        declares=replace(profile.declares, **declares, version=was + 1),
        updated_at=at,
    )
    await store.profiles.update(profile)
    store.emit(DeviceProfileChanged(tenant_id=store.tenant_id, at=at, profile_id=profile_id))
    return profile


class ProfilesInUse:
    """Keeps what this process knows of its devices' profiles up to date."""

    def __init__(self, sources: Sources, transactions: Transactions[IngestStore]) -> None:
        self._sources = sources
        self._transactions = transactions
        self._turn = asyncio.Lock()
        """What is read later is applied later."""

    async def profile_changed(self, tenant_id: UUID, profile_id: UUID) -> None:
        """Read a profile anew for the devices that have it."""
        self._sources.changed(profile_id)
        async with self._turn:
            users = [
                source
                for source in self._sources.known_of(tenant_id)
                if source.profile is not None and source.profile.id == profile_id
            ]
            if not users:
                return
            async with self._transactions.begin(tenant_id) as store:
                profile = (await store.profiles.get(profile_id)).declares
            for source in users:
                # Events may come late: what is newer stays.
                if source.profile is None or source.profile.version <= profile.version:
                    source.profile = profile

    async def device_changed(self, tenant_id: UUID, device_id: UUID) -> None:
        """Read a device's profile anew, if the device is known here."""
        self._sources.changed(device_id)
        async with self._turn:
            source = self._sources.known(device_id)
            if source is None or source.tenant_id != tenant_id:
                return
            async with self._transactions.begin(tenant_id) as store:
                try:
                    source.profile = await store.devices.profile(device_id)
                except NotFound:
                    return  # removed meanwhile; it is cut off

    async def read_again(self) -> None:
        """Read the profiles of all devices that are known anew: changes may have been missed.

        Raises what is transient.
        """
        self._sources.changed(None)
        tenants: dict[UUID, list[Source]] = {}
        for source in self._sources.all_known():
            tenants.setdefault(source.tenant_id, []).append(source)
        for tenant_id, known in tenants.items():
            for start in range(0, len(known), READ_AT_ONCE):
                some = known[start : start + READ_AT_ONCE]
                async with self._turn:
                    async with self._transactions.begin(tenant_id) as store:
                        found = await store.profiles.of_devices([each.device_id for each in some])
                    for source in some:
                        source.profile = found.get(source.device_id)
