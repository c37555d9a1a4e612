"""Profiles of devices."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from libs.common.historian.point import Kind
from services.ingest.domain.profile import DeviceProfile, MetricDeclaration, Profile
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.store.tables import DeviceRow, ProfileRow


class Profiles:
    """The profiles of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, profile: DeviceProfile) -> None:
        """Keep a profile. Raises Conflict if there is one of that name."""
        row = ProfileRow(tenant_id=self._tenant_id, id=profile.id, created_at=profile.created_at)
        await self._save(row, profile)

    async def count(self) -> int:
        """Return how many there are."""
        query = select(func.count()).where(ProfileRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, profile_id: UUID, *, lock: bool = False) -> DeviceProfile:
        """Return a profile, locked until the transaction ends if asked. Raises NotFound."""
        return _to_profile(await self._row(profile_id, lock=lock))

    async def hold(self, profile_id: UUID) -> DeviceProfile:
        """Return a profile, which is not removed until the transaction ends. Raises NotFound."""
        return _to_profile(await self._row(profile_id, hold=True))

    async def of_devices(self, device_ids: Collection[UUID]) -> dict[UUID, Profile]:
        """Return what the profiles declare of those of the devices that have one."""
        devices = await self._session.execute(
            select(DeviceRow.id, DeviceRow.profile_id).where(
                DeviceRow.tenant_id == self._tenant_id,
                DeviceRow.id.in_(device_ids),
                DeviceRow.profile_id.is_not(None),
                DeviceRow.deleted_at.is_(None),
            )
        )
        had = {row.id: row.profile_id for row in devices}
        rows = await self._session.scalars(
            select(ProfileRow).where(
                ProfileRow.tenant_id == self._tenant_id, ProfileRow.id.in_(set(had.values()))
            )
        )
        declared = {row.id: _to_profile(row).declares for row in rows}
        return {
            device_id: declared[profile_id]
            for device_id, profile_id in had.items()
            if profile_id in declared
        }

    async def page(self, limit: int, after: str | None) -> list[DeviceProfile]:
        """Return up to `limit` profiles, by name, after the given one."""
        query = (
            select(ProfileRow)
            .where(ProfileRow.tenant_id == self._tenant_id)
            .order_by(ProfileRow.name)
            .limit(limit)
        )
        if after is not None:
            query = query.where(ProfileRow.name > after)
        return [_to_profile(row) for row in await self._session.scalars(query)]

    async def ids_by_name(self) -> dict[str, UUID]:
        """Return all the tenant's profiles, by name."""
        rows = await self._session.execute(
            select(ProfileRow.name, ProfileRow.id).where(ProfileRow.tenant_id == self._tenant_id)
        )
        return {row.name: row.id for row in rows}

    async def update(self, profile: DeviceProfile) -> None:
        """Save a profile. Raises Conflict if its new name is taken."""
        await self._save(await self._row(profile.id), profile)

    async def remove(self, profile_id: UUID) -> None:
        """Remove a profile. Raises NotFound, and Conflict if devices have it."""
        row = await self._row(profile_id, lock=True)
        users = await self._session.scalar(
            select(func.count()).where(
                DeviceRow.tenant_id == self._tenant_id,
                DeviceRow.profile_id == profile_id,
                DeviceRow.deleted_at.is_(None),
            )
        )
        if users:
            raise Conflict(f"{users} devices have this profile; give them another one first")
        await self._session.delete(row)

    async def _row(self, profile_id: UUID, *, lock: bool = False, hold: bool = False) -> ProfileRow:
        query = select(ProfileRow).where(
            ProfileRow.tenant_id == self._tenant_id, ProfileRow.id == profile_id
        )
        if lock or hold:
            query = query.with_for_update(read=hold, key_share=hold)
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no profile {profile_id}")
        return row

    async def _save(self, row: ProfileRow, profile: DeviceProfile) -> None:
        declares = profile.declares
        row.name = profile.name
        row.description = profile.description
        row.metrics = {name: _written(metric) for name, metric in declares.metrics.items()}
        row.protocol = declares.protocol
        row.payload_format = declares.payload_format
        row.fields = dict(declares.fields)
        row.offline_after = declares.offline_after
        row.updated_at = profile.updated_at
        row.version = declares.version
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "device_profiles_tenant_id_name_key" in str(error.orig):
                raise Conflict(f"there is a profile named {profile.name!r} already") from error
            raise


def read_profile(document: Mapping[str, Any]) -> Profile:
    """Return what a profile declares, as the look-up before the tenant is known tells it."""
    seconds = document["offline_after_s"]
    return Profile(
        id=UUID(document["id"]),
        version=document["version"],
        metrics=_read(document["metrics"]),
        protocol=_or_none(Protocol, document["protocol"]),
        payload_format=_or_none(PayloadFormat, document["payload_format"]),
        fields=document["fields"],
        offline_after=None if seconds is None else timedelta(seconds=float(seconds)),
    )


def _to_profile(row: ProfileRow) -> DeviceProfile:
    return DeviceProfile(
        name=row.name,
        description=row.description,
        declares=Profile(
            id=row.id,
            version=row.version,
            metrics=_read(row.metrics),
            protocol=_or_none(Protocol, row.protocol),
            payload_format=_or_none(PayloadFormat, row.payload_format),
            fields=row.fields,
            offline_after=row.offline_after,
        ),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _or_none(kind: Any, value: str | None) -> Any:
    return None if value is None else kind(value)


def _written(metric: MetricDeclaration) -> dict[str, Any]:
    return {
        "kind": None if metric.kind is None else metric.kind.name.lower(),
        "unit": metric.unit,
        "minimum": metric.minimum,
        "maximum": metric.maximum,
    }


def _read(metrics: Mapping[str, Any]) -> dict[str, MetricDeclaration]:
    return {
        name: MetricDeclaration(
            kind=None if declared["kind"] is None else Kind[declared["kind"].upper()],
            unit=declared["unit"],
            minimum=declared["minimum"],
            maximum=declared["maximum"],
        )
        for name, declared in metrics.items()
    }
