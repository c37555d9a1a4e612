"""Devices that speak for others, and for whom."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import NotFound
from services.ingest.domain.gateway import Gateway
from services.ingest.store.tables import DeviceRow, GatewayDeviceRow, GatewayRow


class Gateways:
    """The gateways among one tenant's devices."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def get(self, device_id: UUID, *, lock: bool = False) -> Gateway:
        """Return what a device may do for others, locked until the transaction ends if asked.

        Raises NotFound if it is no gateway.
        """
        query = select(GatewayRow).where(
            GatewayRow.tenant_id == self._tenant_id, GatewayRow.device_id == device_id
        )
        row = await self._session.scalar(query.with_for_update() if lock else query)
        if row is None:
            raise NotFound(f"device {device_id} is no gateway")
        return Gateway(row.registers, row.most)

    async def appoint(self, device_id: UUID, gateway: Gateway, at: datetime) -> None:
        """Make a device a gateway, or another one than it was."""
        values = {"registers": gateway.registers, "most": gateway.most, "changed_at": at}
        await self._session.execute(
            insert(GatewayRow)
            .values(tenant_id=self._tenant_id, device_id=device_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id", "device_id"], set_=values)
        )

    async def remove(self, device_id: UUID) -> None:
        """Let a device speak for itself alone again. Raises NotFound if it is no gateway."""
        removed = await self._session.scalar(
            delete(GatewayRow)
            .where(GatewayRow.tenant_id == self._tenant_id, GatewayRow.device_id == device_id)
            .returning(GatewayRow.device_id)
        )
        if removed is None:
            raise NotFound(f"device {device_id} is no gateway")

    async def behind(self, gateway_id: UUID) -> dict[str, UUID]:
        """Return the devices behind a gateway, by what it calls them."""
        rows = await self._session.execute(
            select(GatewayDeviceRow.name, GatewayDeviceRow.device_id)
            .where(
                GatewayDeviceRow.tenant_id == self._tenant_id,
                GatewayDeviceRow.gateway_id == gateway_id,
            )
            .order_by(GatewayDeviceRow.name)
        )
        return {row.name: row.device_id for row in rows}

    async def called(self, gateway_id: UUID, name: str) -> UUID | None:
        """Return the device that a gateway calls so."""
        return await self._session.scalar(
            select(GatewayDeviceRow.device_id).where(
                GatewayDeviceRow.tenant_id == self._tenant_id,
                GatewayDeviceRow.gateway_id == gateway_id,
                GatewayDeviceRow.name == name,
            )
        )

    async def count_behind(self, gateway_id: UUID) -> int:
        """Return how many devices are behind a gateway."""
        query = select(func.count()).where(
            GatewayDeviceRow.tenant_id == self._tenant_id,
            GatewayDeviceRow.gateway_id == gateway_id,
        )
        return await self._session.scalar(query) or 0

    async def put_behind(self, gateway_id: UUID, devices: Mapping[str, UUID]) -> "set[UUID]":
        """Put devices that are held, or new, behind a gateway, under the names it has for them.

        A device that was behind another one no longer is; return those gateways.
        """
        if not devices:
            return set()
        left = await self._session.scalars(
            select(GatewayDeviceRow.gateway_id).where(
                GatewayDeviceRow.tenant_id == self._tenant_id,
                GatewayDeviceRow.device_id.in_(devices.values()),
            )
        )
        added = insert(GatewayDeviceRow).values(
            [
                {
                    "tenant_id": self._tenant_id,
                    "device_id": device_id,
                    "gateway_id": gateway_id,
                    "name": name,
                }
                for name, device_id in devices.items()
            ]
        )
        await self._session.execute(
            added.on_conflict_do_update(
                index_elements=["tenant_id", "device_id"],
                set_={"gateway_id": added.excluded.gateway_id, "name": added.excluded.name},
            )
        )
        return set(left) - {gateway_id}

    async def take_away(self, gateway_id: UUID, names: list[str]) -> None:
        """Let a gateway no longer speak for those that it calls so."""
        await self._session.execute(
            delete(GatewayDeviceRow).where(
                GatewayDeviceRow.tenant_id == self._tenant_id,
                GatewayDeviceRow.gateway_id == gateway_id,
                GatewayDeviceRow.name.in_(names),
            )
        )

    async def hold(self, device_ids: Iterable[UUID]) -> "set[UUID]":
        """Return which of these devices there are.

        Until the transaction ends they stay, and nobody else puts them behind a gateway.
        """
        # In one order everywhere, so that two who want the same wait and do not deadlock.
        rows = await self._session.scalars(
            select(DeviceRow.id)
            .where(
                DeviceRow.tenant_id == self._tenant_id,
                DeviceRow.id.in_(device_ids),
                DeviceRow.deleted_at.is_(None),
            )
            .order_by(DeviceRow.id)
            .with_for_update(key_share=True)
        )
        return set(rows)
