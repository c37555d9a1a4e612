"""What is done with gateways: the right to speak for others, and finding for whom."""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from libs.common.bus.outcome import is_transient
from libs.common.db.transactions import Transactions
from libs.common.errors import Conflict, FieldError, Invalid, NotFound, Unavailable
from libs.common.events.ingest import DeviceGatewayChanged
from services.ingest.domain.device import NameTaken, Source
from services.ingest.domain.gateway import (
    MOST_BEHIND,
    Gateway,
    NotAGateway,
    NotBehind,
    is_a_name,
)
from services.ingest.store.store import IngestStore
from services.ingest.usecases.named_devices import register_named
from services.ingest.usecases.sources import Sources


async def appoint(store: IngestStore, device_id: UUID, gateway: Gateway, *, at: datetime) -> None:
    """Let a device speak for those behind it. Raises NotFound if there is no such device."""
    await store.devices.get(device_id, lock=True)
    await store.gateways.appoint(device_id, gateway, at)
    _say_changed(store, device_id, at)


async def dismiss(store: IngestStore, device_id: UUID, *, at: datetime) -> None:
    """Let a device speak for itself alone. Raises NotFound if it is no gateway."""
    await store.gateways.remove(device_id)
    _say_changed(store, device_id, at)


async def change_behind(
    store: IngestStore, gateway_id: UUID, patch: Mapping[str, UUID | None], *, at: datetime
) -> dict[str, UUID]:
    """Put devices behind a gateway by the names it has for them, or take them away (None).

    A device is behind one gateway: the newest. Returns all that are behind it then. Raises NotFound
    if it is no gateway, Invalid, naming what is wrong: nothing has changed then.
    """
    await store.gateways.get(gateway_id, lock=True)
    put = {name: device_id for name, device_id in patch.items() if device_id is not None}
    taken = [
        held for name, held in (await store.gateways.behind(gateway_id)).items() if name in patch
    ]
    there = await store.gateways.hold({*put.values(), *taken})
    errors = [
        FieldError(f"#/{name[:128]}", reason)
        for name, device_id in patch.items()
        if (reason := _fault(name, device_id, gateway_id, there)) is not None
    ]
    if len(set(put.values())) < len(put):
        errors.append(FieldError("#", "one device has two names"))
    if errors:
        raise Invalid("these devices cannot be put behind the gateway", errors=errors[:20])
    await store.gateways.take_away(gateway_id, list(patch))
    left = await store.gateways.put_behind(gateway_id, put)
    behind = await store.gateways.behind(gateway_id)
    if len(behind) > MOST_BEHIND:
        raise Invalid(f"{MOST_BEHIND} devices at most are behind one gateway")
    for changed in (gateway_id, *sorted(left)):
        _say_changed(store, changed, at)
    return behind


def _fault(name: str, device_id: UUID | None, gateway_id: UUID, there: set[UUID]) -> str | None:
    if not is_a_name(name):
        return "a name has 1 to 128 printable characters"
    if device_id == gateway_id:
        return "a gateway is not behind itself"
    return "there is no such device" if device_id is not None and device_id not in there else None


def _say_changed(store: IngestStore, device_id: UUID, at: datetime) -> None:
    store.emit(DeviceGatewayChanged(tenant_id=store.tenant_id, at=at, device_id=device_id))


class Behind:
    """The devices behind one gateway, for its connection."""

    def __init__(
        self,
        gateway: Source,
        sources: Sources,
        transactions: Transactions[IngestStore],
        most_of_tenant: int,
    ) -> None:
        self._gateway = gateway
        self._sources = sources
        self._transactions = transactions
        self._most_of_tenant = most_of_tenant

    async def check(self) -> None:
        """Raise NotAGateway if the device may speak for nobody; Unavailable."""
        try:
            async with self._transactions.begin(self._gateway.tenant_id) as store:
                await self._right(store)
        except Exception as error:
            raise _unavailable(error) from error

    async def source(self, name: str, registered_as: str, at: datetime) -> Source:
        """Return the device that the gateway calls so; registered now, if it may do that.

        Raises NotAGateway, NotBehind if it may not speak for such a device, Unavailable.
        """
        if not is_a_name(name) or not is_a_name(registered_as):
            raise NotBehind("a device's name has 1 to 128 printable characters")
        try:
            device_id = await self._find(name, registered_as, at)
        except Exception as error:
            raise _unavailable(error) from error
        try:
            return await self._sources.of_tenant(self._gateway.tenant_id, device_id)
        except NotFound:
            raise NotBehind(f"the device {name!r} was removed") from None

    async def _find(self, name: str, registered_as: str, at: datetime) -> UUID:
        gateway_id = self._gateway.device_id
        async with self._transactions.begin(self._gateway.tenant_id) as store:
            gateway = await self._right(store)
            found = await store.gateways.called(gateway_id, name)
            if found is not None:
                return found
            if gateway.registers is None:
                raise NotBehind(f"no device {name!r} is behind this gateway")
            # Counted under the lock, so that two that race do not both find room; the other's device
            # may be the very one.
            gateway = await store.gateways.get(gateway_id, lock=True)
            found = await store.gateways.called(gateway_id, name)
            if found is not None:
                return found
            if await store.gateways.count_behind(gateway_id) >= gateway.most:
                raise NotBehind(
                    f"{gateway.most} devices are behind this gateway, and no more may be"
                )
            try:
                device_id = await register_named(
                    store, registered_as, gateway.registers or "", most=self._most_of_tenant, at=at
                )
            except NameTaken:
                raise NotBehind(
                    f"a device {registered_as!r} is registered, and is not behind this gateway"
                ) from None
            except Conflict as full:
                raise NotBehind(full.detail) from None
            await store.gateways.put_behind(gateway_id, {name: device_id})
            return device_id

    async def _right(self, store: IngestStore) -> Gateway:
        try:
            return await store.gateways.get(self._gateway.device_id)
        except NotFound:
            raise NotAGateway("the device is no gateway: it speaks for itself alone") from None


def _unavailable(error: Exception) -> Exception:
    if is_transient(error) and not isinstance(error, Unavailable):
        return Unavailable("gateways cannot be looked up now", retry_after_s=2)
    return error
