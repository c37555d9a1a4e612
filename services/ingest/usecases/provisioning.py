"""Keys by which devices register themselves."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from libs.common.auth.guesses import Guesses
from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.db.acting import check_unlimited
from libs.common.db.transactions import Transactions
from libs.common.errors import (
    Conflict,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
)
from libs.common.events.ingest import DeviceCredentialRotated
from libs.common.places import whole_tenant
from services.ingest.domain.device import Device, Status
from services.ingest.domain.provisioning import MOST_KEYS, ProvisioningKey
from services.ingest.domain.token import hash_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.devices import give_token, register


async def create(
    store: IngestStore, key_id: UUID, key: str, *, at: datetime, **fields: Any
) -> ProvisioningKey:
    """Make a key. Raises Conflict if the name is taken or there are too many, NotFound for its
    profile and group, Forbidden if it has no group and the caller is limited to some.
    """
    async with whole_tenant(store.session):
        there = await store.provisioning_keys.count()
    if there >= MOST_KEYS:
        raise Conflict(f"a tenant has {MOST_KEYS} provisioning keys at most")
    made = ProvisioningKey(id=key_id, devices=0, created_at=at, updated_at=at, version=1, **fields)
    await _check_place(store, made)
    await store.provisioning_keys.add(made, hash_token(key))
    return made


async def update(
    store: IngestStore,
    key_id: UUID,
    changes: dict[str, Any],
    *,
    version: int | None,
    at: datetime,
) -> ProvisioningKey:
    """Change what is given of a key. Raises NotFound, Conflict, PreconditionFailed."""
    key = await store.provisioning_keys.get(key_id, lock=True)
    if version is not None and version != key.version:
        raise PreconditionFailed(f"the key is at version {key.version}, not {version}")
    key = replace(key, **changes, updated_at=at, version=key.version + 1)
    await _check_place(store, key)
    await store.provisioning_keys.update(key)
    return key


async def _check_place(store: IngestStore, key: ProvisioningKey) -> None:
    if key.profile_id is not None:
        await store.profiles.get(key.profile_id)
    if key.group_id is None:
        check_unlimited("a key of yours is for one of the groups that you are limited to")
    else:
        await store.groups.get(key.group_id)


class KeyLookup(Protocol):
    """Finds the tenant that a key belongs to."""

    async def provisioning_key(self, shown: bytes) -> tuple[UUID, UUID] | None:
        """Return the tenant and the key's id, by the key's hash; None if it is nobody's."""
        ...


class Provisioning:
    """Lets devices register themselves, by a key that their maker put into them."""

    def __init__(
        self,
        keys: KeyLookup,
        transactions: Transactions[IngestStore],
        guesses: Guesses,
        clock: Clock,
        most_devices: int,
    ) -> None:
        self._keys = keys
        self._transactions = transactions
        self._guesses = guesses
        self._clock = clock
        self._most_devices = most_devices
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        """One device of a key at a time: the others wait here, not each with a connection."""

    async def provision(
        self, key: str, token: str, origin: str, *, serial: str, name: str | None
    ) -> Device:
        """Register a device by its serial number, and give it a token.

        A device that registered with this key and was never heard of since may do so again: it has
        lost the answer. Raises Unauthenticated if the key is nobody's, TooManyRequests if too many
        such came from that address, Forbidden if it is not good any more, Conflict if the serial
        number or name is taken or enough devices have registered.
        """
        tenant_id, key_id = await self._find(hash_token(key), origin)
        turn = self._turns.setdefault(key_id, asyncio.Lock())
        async with turn, self._transactions.begin(tenant_id) as store:
            at = self._clock.now()
            found = await store.provisioning_keys.get(key_id, lock=True)
            found.check(at)
            there = await store.devices.by_serial(serial)
            if there is not None:
                return await self._again(store, found, there, token, at)
            found.check_room()
            device = await register(
                store,
                uuid4(),
                token,
                name=name or serial,
                type=found.device_type,
                description="",
                most=self._most_devices,
                at=at,
                serial=serial,
                profile_id=found.profile_id,
                group_id=found.group_id,
                tags=found.tags,
                provisioned_by=found.id,
            )
            await store.provisioning_keys.update(replace(found, devices=found.devices + 1))
            return device

    async def _again(
        self,
        store: IngestStore,
        key: ProvisioningKey,
        device: Device,
        token: str,
        at: datetime,
    ) -> Device:
        was_heard = device.last_seen_at is not None or device.status is not Status.UNKNOWN
        if device.provisioned_by != key.id or was_heard:
            raise Conflict("a device with this serial number is registered already")
        removed = await store.credentials.remove_all(device.id)
        await give_token(store, device.id, token, at=at)
        store.emit(
            DeviceCredentialRotated(
                tenant_id=store.tenant_id, at=at, device_id=device.id, credential_ids=removed
            )
        )
        return device

    async def _find(self, shown: bytes, origin: str) -> tuple[UUID, UUID]:
        async def look() -> tuple[UUID, UUID]:
            try:
                found = await self._keys.provisioning_key(shown)
            except Exception as error:
                if is_transient(error):
                    raise Unavailable("keys cannot be looked up now", retry_after_s=2) from error
                raise
            if found is None:
                raise Unauthenticated("the provisioning key is not valid")
            return found

        return await self._guesses.look_up(shown, origin, "provisioning key", look)
