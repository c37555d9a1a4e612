"""Where devices are, for live connections of callers who are limited to groups of devices."""

from collections.abc import Collection, Mapping
from typing import Protocol
from uuid import UUID

Groups = frozenset[UUID]


class PlaceSource(Protocol):
    """Knows where devices are."""

    async def places_of(
        self, tenant_id: UUID, device_ids: Collection[UUID]
    ) -> Mapping[UUID, Groups]:
        """Return the groups that each of the tenant's devices is in; one in no group may be missing."""
        ...


class Places:
    """What this process knows of where devices are, for the tenants it is asked about."""

    def __init__(self, source: PlaceSource) -> None:
        self._source = source
        self._known: dict[UUID, dict[UUID, Groups]] = {}
        self._moves = 0

    async def learn(self, tenant_id: UUID, device_ids: Collection[UUID]) -> None:
        """Know where these are. What is moved meanwhile is looked up again."""
        while unknown := set(device_ids) - self._known.get(tenant_id, {}).keys():
            before = self._moves
            found = await self._source.places_of(tenant_id, unknown)
            if before != self._moves:
                continue
            known = self._known.setdefault(tenant_id, {})
            for device_id in unknown:
                known[device_id] = found.get(device_id, frozenset())

    def of(self, tenant_id: UUID, device_id: UUID) -> Groups | None:
        """Return the groups that a device is in; None if that is not known."""
        return self._known.get(tenant_id, {}).get(device_id)

    def moved(self, tenant_id: UUID, device_ids: Collection[UUID]) -> None:
        """Forget where these were: they are elsewhere now."""
        self._moves += 1
        known = self._known.get(tenant_id, {})
        for device_id in device_ids:
            known.pop(device_id, None)

    def forget(self, tenant_id: UUID) -> None:
        """Forget a tenant's: nobody asks any more."""
        self._known.pop(tenant_id, None)

    def forget_all(self) -> None:
        """Forget everything: some moves may not have been told."""
        self._moves += 1
        self._known.clear()
