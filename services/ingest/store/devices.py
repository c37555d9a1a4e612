"""Devices and their credentials."""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.ingest.domain.device import Device, Series, Source, Status, shard_of
from services.ingest.store.tables import CredentialRow, DeviceRow


class Devices:
    """The devices of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, device: Device) -> None:
        """Register a device. Raises Conflict if the tenant has one of that name."""
        row = DeviceRow(
            tenant_id=self._tenant_id,
            id=device.id,
            name=device.name,
            type=device.type,
            description=device.description,
            status=device.status,
            status_reason=device.status_reason,
            status_at=device.status_at,
            created_at=device.created_at,
            updated_at=device.updated_at,
            version=device.version,
        )
        await self._save(row, device.name)
        # The historian's number of the tenant: its devices' points are stored under it.
        await self._session.execute(
            text("SELECT historian.tenant_number(:tenant)"), {"tenant": self._tenant_id}
        )

    async def count(self) -> int:
        """Return how many devices there are."""
        query = select(func.count()).where(DeviceRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, device_id: UUID, *, lock: bool = False) -> Device:
        """Return a device, locked until the transaction ends if asked. Raises NotFound."""
        return _to_device(await self._row(device_id, lock=lock))

    async def page(
        self, limit: int, after: tuple[datetime, UUID] | None, device_type: str | None
    ) -> list[Device]:
        """Return up to `limit` devices, oldest first, after the given (created_at, id)."""
        query = (
            select(DeviceRow)
            .where(DeviceRow.tenant_id == self._tenant_id)
            .order_by(DeviceRow.created_at, DeviceRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(DeviceRow.created_at, DeviceRow.id) > after)
        if device_type is not None:
            query = query.where(DeviceRow.type == device_type)
        return [_to_device(row) for row in await self._session.scalars(query)]

    async def update(self, device: Device) -> None:
        """Save what may change of a device. Raises Conflict if its new name is taken."""
        row = await self._row(device.id)
        row.name = device.name
        row.type = device.type
        row.description = device.description
        row.status = device.status
        row.status_reason = device.status_reason
        row.status_at = device.status_at
        row.updated_at = device.updated_at
        row.version = device.version
        await self._save(row, device.name)

    async def remove(self, device_id: UUID) -> None:
        """Remove a device with its credential. Raises NotFound."""
        row = await self._row(device_id, lock=True)
        await self._session.delete(row)

    async def set_token(self, device_id: UUID, token_hash: bytes, now: datetime) -> None:
        """Replace the device's token."""
        values = {"token_hash": token_hash, "created_at": now}
        await self._session.execute(
            insert(CredentialRow)
            .values(tenant_id=self._tenant_id, device_id=device_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id", "device_id"], set_=values)
        )

    async def source(self, device_id: UUID, shards: int) -> Source:
        """Return what taking a point of the device needs. Raises NotFound."""
        await self._row(device_id)
        tenant = await self._session.scalar(
            text("SELECT historian.tenant_number(:tenant)"), {"tenant": self._tenant_id}
        )
        rows = await self._session.execute(
            text(
                "SELECT metric, id, kind FROM historian.series"
                " WHERE tenant = :tenant AND device_id = :device"
            ),
            {"tenant": tenant, "device": device_id},
        )
        return Source(
            device_id=device_id,
            tenant_id=self._tenant_id,
            tenant=tenant,
            shard=shard_of(device_id, shards),
            series={metric: Series(number, kind) for metric, number, kind in rows},
        )

    async def series(
        self, device_id: UUID, tenant: int, kinds: Mapping[str, int]
    ) -> dict[str, Series]:
        """Return the device's series of these metrics, made where missing.

        A series that exists keeps its kind, whatever `kinds` says.
        """
        await self._session.execute(
            text(
                "INSERT INTO historian.series (tenant, device_id, metric, kind)"
                " SELECT :tenant, :device, m.metric, m.kind"
                " FROM unnest(cast(:metrics AS text[]), cast(:kinds AS smallint[]))"
                " AS m(metric, kind) ON CONFLICT DO NOTHING"
            ),
            {
                "tenant": tenant,
                "device": device_id,
                # In one order everywhere, so that two who add the same wait and do not deadlock.
                "metrics": sorted(kinds),
                "kinds": [int(kinds[metric]) for metric in sorted(kinds)],
            },
        )
        rows = await self._session.execute(
            text(
                "SELECT metric, id, kind FROM historian.series"
                " WHERE tenant = :tenant AND device_id = :device"
                " AND metric = ANY(cast(:metrics AS text[]))"
            ),
            {"tenant": tenant, "device": device_id, "metrics": list(kinds)},
        )
        return {metric: Series(number, kind) for metric, number, kind in rows}

    async def _row(self, device_id: UUID, *, lock: bool = False) -> DeviceRow:
        query = select(DeviceRow).where(
            DeviceRow.tenant_id == self._tenant_id, DeviceRow.id == device_id
        )
        if lock:
            query = query.with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no device {device_id}")
        return row

    async def _save(self, row: DeviceRow, name: str) -> None:
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "devices_tenant_id_name_key" in str(error.orig):
                raise Conflict(f"there is a device named {name!r} already") from error
            raise


def _to_device(row: DeviceRow) -> Device:
    return Device(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        type=row.type,
        description=row.description,
        status=Status(row.status),
        status_reason=row.status_reason,
        status_at=row.status_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )
