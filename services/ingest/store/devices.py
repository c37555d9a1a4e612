"""The devices of a tenant, and what taking their points needs."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

import msgspec
from sqlalchemy import ARRAY, Text, Uuid, cast, delete, func, select, text, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from libs.common.db.engine import Database
from libs.common.errors import NotFound
from services.ingest.domain.device import (
    Device,
    NameTaken,
    SerialTaken,
    Series,
    Source,
    Status,
    shard_of,
)
from services.ingest.domain.profile import Profile
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.search import NEVER, Wanted
from services.ingest.store.many import insert_many
from services.ingest.store.profiles import Profiles
from services.ingest.store.tables import ContactRow, DeviceRow
from services.ingest.store.turns import take_turn


class Devices:
    """The devices of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, device: Device) -> None:
        """Register a device. Raises Conflict if the tenant has one of that name, or serial number."""
        row = DeviceRow(tenant_id=self._tenant_id, id=device.id, created_at=device.created_at)
        await self._save(row, device)
        await self.open_books()

    async def add_many(self, devices: Sequence[Device], with_attributes: Collection[UUID]) -> None:
        """Register devices whose names and serial numbers are known to be free.

        Those in `with_attributes` are found only when their attributes are added. Raises Conflict if
        a name or serial number was taken meanwhile.
        """
        for follow in (False, True):
            await self._session.execute(
                text("SELECT set_config('ingest.attributes_follow', :follow, true)"),
                {"follow": "on" if follow else "off"},
            )
            some = [
                self._new(device) for device in devices if (device.id in with_attributes) is follow
            ]
            try:
                await insert_many(self._session, "ingest.devices", some)
            except IntegrityError as error:
                if "devices_tenant_id_name_key" in str(error.orig):
                    raise NameTaken("a name was taken meanwhile; import again") from error
                if "devices_serial" in str(error.orig):
                    raise SerialTaken(
                        "a serial number was taken meanwhile; import again"
                    ) from error
                raise
        await self._session.execute(
            text("SELECT set_config('ingest.attributes_follow', 'off', true)")
        )
        await self.open_books()

    def _new(self, device: Device) -> dict[str, object]:
        return {
            "tenant_id": self._tenant_id,
            "id": device.id,
            "created_at": device.created_at,
            **_columns(device),
        }

    async def open_books(self) -> None:
        """See that the historian has a number for the tenant: its points are stored under it."""
        await self._session.execute(
            text("SELECT historian.tenant_number(:tenant)"), {"tenant": self._tenant_id}
        )

    async def lock(self) -> None:
        """Let nobody else register devices of the tenant until the transaction ends.

        Raises Unavailable if somebody else does so for long.
        """
        await take_turn(self._session, "ingest.devices", self._tenant_id)

    async def count(self) -> int:
        """Return how many devices there are."""
        query = select(func.count()).where(
            DeviceRow.tenant_id == self._tenant_id, DeviceRow.deleted_at.is_(None)
        )
        return await self._session.scalar(query) or 0

    async def get(self, device_id: UUID, *, lock: bool = False, or_deleted: bool = False) -> Device:
        """Return a device, locked until the transaction ends if asked. Raises NotFound.

        One that is removed is found only if asked for.
        """
        row = await self._row(device_id, lock=lock, or_deleted=or_deleted)
        contact = await self._session.scalar(
            select(ContactRow).where(
                ContactRow.tenant_id == self._tenant_id, ContactRow.device_id == device_id
            )
        )
        return _to_device(row, contact)

    async def find(self, wanted: Wanted, limit: int) -> list[Device]:
        """Return up to `limit` of the devices that are looked for, in order."""
        ids = list(
            await self._session.scalars(
                text("SELECT ingest.find_devices(:tenant, cast(:wanted AS jsonb), :most)"),
                {
                    "tenant": self._tenant_id,
                    "wanted": msgspec.json.encode(wanted).decode(),
                    "most": limit,
                },
            )
        )
        # Each by its key: OFFSET 0 lets the planner take no other way. It counts the policy's array
        # with every key, and would rather read all rows of a large tenant.
        wanted_ids = (
            func.unnest(cast(ids, ARRAY(Uuid))).table_valued("id", name="wanted").render_derived()
        )
        device = aliased(
            DeviceRow,
            select(DeviceRow)
            .where(DeviceRow.tenant_id == self._tenant_id, DeviceRow.id == wanted_ids.c.id)
            .offset(0)
            .lateral("device"),
        )
        contact = aliased(
            ContactRow,
            select(ContactRow)
            .where(ContactRow.tenant_id == self._tenant_id, ContactRow.device_id == wanted_ids.c.id)
            .offset(0)
            .lateral("contact"),
        )
        rows = await self._session.execute(
            select(device, contact).join_from(wanted_ids, device, true()).join(contact, true())
        )
        found = {row.id: _to_device(row, heard) for row, heard in rows}
        return [found[device_id] for device_id in ids if device_id in found]

    async def taken(
        self, names: Collection[str], serials: Collection[str]
    ) -> tuple[set[str], set[str]]:
        """Return which of the names, and of the serial numbers, devices have."""
        there = (DeviceRow.tenant_id == self._tenant_id) & DeviceRow.deleted_at.is_(None)
        named = await self._session.scalars(
            select(DeviceRow.name).where(
                there, DeviceRow.name == func.any(cast(list(names), ARRAY(Text)))
            )
        )
        numbered = await self._session.scalars(
            select(DeviceRow.serial).where(
                there, DeviceRow.serial == func.any(cast(list(serials), ARRAY(Text)))
            )
        )
        return set(named), {serial for serial in numbered if serial is not None}

    async def update(self, device: Device) -> None:
        """Save what may change of a device. Raises Conflict if its name or serial number is taken."""
        await self._save(await self._row(device.id, or_deleted=True), device)

    async def let_go(self, device_id: UUID) -> None:
        """Forget who holds the device's connection: nothing is noted of a removed device any more."""
        await self._session.execute(
            text(
                "UPDATE ingest.devices SET endpoint_id = NULL, connected_at = NULL"
                " WHERE tenant_id = :tenant AND id = :device"
            ),
            {"tenant": self._tenant_id, "device": device_id},
        )

    async def by_serial(self, serial: str) -> Device | None:
        """Return the device with a serial number, locked until the transaction ends."""
        device_id = await self._session.scalar(
            select(DeviceRow.id).where(
                DeviceRow.tenant_id == self._tenant_id,
                DeviceRow.serial == serial,
                DeviceRow.deleted_at.is_(None),
            )
        )
        return None if device_id is None else await self.get(device_id, lock=True)

    async def erase(self, device_ids: Sequence[UUID]) -> None:
        """Erase devices that are removed, with all that belongs to them; their points stay."""
        await self._session.execute(
            delete(DeviceRow).where(
                DeviceRow.tenant_id == self._tenant_id,
                DeviceRow.id.in_(device_ids),
                DeviceRow.deleted_at.is_not(None),
            )
        )

    async def profile(self, device_id: UUID) -> Profile | None:
        """Return what the device's profile declares, if it has one. Raises NotFound."""
        row = await self._row(device_id)
        if row.profile_id is None:
            return None
        return (await Profiles(self._session, self._tenant_id).get(row.profile_id)).declares

    async def source(self, device_id: UUID, shards: int) -> Source:
        """Return what taking a point of the device needs. Raises NotFound."""
        profile = await self.profile(device_id)
        tenant = await self._session.scalar(
            text("SELECT historian.tenant_number(:tenant)"), {"tenant": self._tenant_id}
        )
        rows = await self._session.execute(
            text(
                "SELECT metric, id, kind, unit FROM historian.series"
                " WHERE tenant = :tenant AND device_id = :device"
            ),
            {"tenant": tenant, "device": device_id},
        )
        return Source(
            device_id=device_id,
            tenant_id=self._tenant_id,
            tenant=tenant,
            shard=shard_of(device_id, shards),
            series={metric: Series(number, kind, unit) for metric, number, kind, unit in rows},
            profile=profile,
        )

    async def series(
        self, device_id: UUID, tenant: int, kinds: Mapping[str, int], units: Mapping[str, str]
    ) -> dict[str, Series]:
        """Return the device's series of these metrics, made where missing, with these units where
        they have none.

        A series that exists keeps its kind and unit, whatever is said here.
        """
        # In one order everywhere, so that two who add the same wait and do not deadlock.
        metrics = sorted(kinds)
        await self._session.execute(
            text(
                "INSERT INTO historian.series (tenant, device_id, metric, kind, unit)"
                " SELECT :tenant, :device, m.metric, m.kind, m.unit"
                " FROM unnest(cast(:metrics AS text[]), cast(:kinds AS smallint[]),"
                " cast(:units AS text[])) AS m(metric, kind, unit) ON CONFLICT DO NOTHING"
            ),
            {
                "tenant": tenant,
                "device": device_id,
                "metrics": metrics,
                "kinds": [int(kinds[metric]) for metric in metrics],
                "units": [units.get(metric) for metric in metrics],
            },
        )
        if units:
            await self._learn_units(device_id, tenant, units)
        rows = await self._session.execute(
            text(
                "SELECT metric, id, kind, unit FROM historian.series"
                " WHERE tenant = :tenant AND device_id = :device"
                " AND metric = ANY(cast(:metrics AS text[]))"
            ),
            {"tenant": tenant, "device": device_id, "metrics": [*kinds, *units]},
        )
        return {metric: Series(number, kind, unit) for metric, number, kind, unit in rows}

    async def count_series(self, tenant: int) -> int:
        """Return how many series all devices of the tenant have together."""
        return int(
            await self._session.scalar(
                text("SELECT count(*) FROM historian.series WHERE tenant = :tenant"),
                {"tenant": tenant},
            )
            or 0
        )

    async def _learn_units(self, device_id: UUID, tenant: int, units: Mapping[str, str]) -> None:
        metrics = sorted(units)
        await self._session.execute(
            text(
                "UPDATE historian.series s SET unit = m.unit"
                " FROM unnest(cast(:metrics AS text[]), cast(:units AS text[])) AS m(metric, unit)"
                " WHERE s.tenant = :tenant AND s.device_id = :device AND s.metric = m.metric"
                " AND s.unit IS NULL"
            ),
            {
                "tenant": tenant,
                "device": device_id,
                "metrics": metrics,
                "units": [units[metric] for metric in metrics],
            },
        )

    async def _row(
        self, device_id: UUID, *, lock: bool = False, or_deleted: bool = False
    ) -> DeviceRow:
        query = select(DeviceRow).where(
            DeviceRow.tenant_id == self._tenant_id, DeviceRow.id == device_id
        )
        if not or_deleted:
            query = query.where(DeviceRow.deleted_at.is_(None))
        if lock:
            query = query.with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no device {device_id}")
        return row

    async def _save(self, row: DeviceRow, device: Device) -> None:
        try:
            async with self._session.begin_nested():
                self._session.add(_fill(row, device))
        except IntegrityError as error:
            if "devices_tenant_id_name_key" in str(error.orig):
                raise NameTaken(f"there is a device named {device.name!r} already") from error
            if "devices_serial" in str(error.orig):
                raise SerialTaken(
                    f"there is a device with the serial number {device.serial!r} already"
                ) from error
            raise


class Removed:
    """The devices of all tenants that were removed long ago (role `ingest_engine`)."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def longer_than(self, kept: timedelta, most: int) -> list[tuple[UUID, UUID]]:
        """Return the tenants and ids of up to `most` devices removed longer ago than `kept`."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT tenant_id, id FROM ingest.devices"
                    " WHERE deleted_at <= (SELECT sec.iiot_now()) - cast(:kept AS interval)"
                    " ORDER BY deleted_at LIMIT :most"
                ),
                {"kept": kept, "most": most},
            )
            return [(row.tenant_id, row.id) for row in rows]


def _fill(row: DeviceRow, device: Device) -> DeviceRow:
    for name, value in _columns(device).items():
        setattr(row, name, value)
    return row


def _columns(device: Device) -> dict[str, object]:
    """Return what may change of a device, as it is kept."""
    return {
        "name": device.name,
        "type": device.type,
        "description": device.description,
        "status": device.status,
        "status_reason": device.status_reason,
        "status_at": device.status_at,
        "updated_at": device.updated_at,
        "version": device.version,
        "serial": device.serial,
        "profile_id": device.profile_id,
        "group_id": device.group_id,
        "tags": list(device.tags),
        "is_claimed": device.is_claimed,
        "provisioned_by": device.provisioned_by,
        "deleted_at": device.deleted_at,
    }


def _to_device(row: DeviceRow, contact: ContactRow | None) -> Device:
    seen_at = None if contact is None or contact.seen_at == NEVER else contact.seen_at
    protocol = None if contact is None else contact.protocol
    payload_format = None if contact is None else contact.payload_format
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
        serial=row.serial,
        profile_id=row.profile_id,
        group_id=row.group_id,
        tags=tuple(row.tags),
        is_claimed=row.is_claimed,
        provisioned_by=row.provisioned_by,
        deleted_at=row.deleted_at,
        last_seen_at=seen_at,
        protocol=None if protocol is None else Protocol(protocol),
        payload_format=None if payload_format is None else PayloadFormat(payload_format),
    )
