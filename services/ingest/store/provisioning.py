"""Keys by which devices register themselves."""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.ingest.domain.provisioning import ProvisioningKey
from services.ingest.store.tables import ProvisioningKeyRow


class ProvisioningKeys:
    """The provisioning keys of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, key: ProvisioningKey, token_hash: bytes) -> None:
        """Keep a key, by its hash. Raises Conflict if there is one of that name."""
        row = ProvisioningKeyRow(
            tenant_id=self._tenant_id, id=key.id, token_hash=token_hash, created_at=key.created_at
        )
        await self._save(row, key)

    async def count(self) -> int:
        """Return how many there are."""
        query = select(func.count()).where(ProvisioningKeyRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, key_id: UUID, *, lock: bool = False) -> ProvisioningKey:
        """Return a key, locked until the transaction ends if asked. Raises NotFound."""
        return _to_key(await self._row(key_id, lock=lock))

    async def page(self, limit: int, after: str | None) -> list[ProvisioningKey]:
        """Return up to `limit` keys, by name, after the given one."""
        query = (
            select(ProvisioningKeyRow)
            .where(ProvisioningKeyRow.tenant_id == self._tenant_id)
            .order_by(ProvisioningKeyRow.name)
            .limit(limit)
        )
        if after is not None:
            query = query.where(ProvisioningKeyRow.name > after)
        return [_to_key(row) for row in await self._session.scalars(query)]

    async def update(self, key: ProvisioningKey) -> None:
        """Save a key. Raises Conflict if its new name is taken."""
        await self._save(await self._row(key.id), key)

    async def remove(self, key_id: UUID) -> None:
        """Remove a key. Raises NotFound."""
        await self._session.delete(await self._row(key_id, lock=True))

    async def _row(self, key_id: UUID, *, lock: bool = False) -> ProvisioningKeyRow:
        query = select(ProvisioningKeyRow).where(
            ProvisioningKeyRow.tenant_id == self._tenant_id, ProvisioningKeyRow.id == key_id
        )
        row = await self._session.scalar(query.with_for_update() if lock else query)
        if row is None:
            raise NotFound(f"no provisioning key {key_id}")
        return row

    async def _save(self, row: ProvisioningKeyRow, key: ProvisioningKey) -> None:
        row.name = key.name
        row.device_type = key.device_type
        row.profile_id = key.profile_id
        row.group_id = key.group_id
        row.tags = list(key.tags)
        row.is_enabled = key.is_enabled
        row.expires_at = key.expires_at
        row.max_devices = key.max_devices
        row.devices = key.devices
        row.updated_at = key.updated_at
        row.version = key.version
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "provisioning_keys_tenant_id_name_key" in str(error.orig):
                raise Conflict(f"there is a key named {key.name!r} already") from error
            raise


def _to_key(row: ProvisioningKeyRow) -> ProvisioningKey:
    return ProvisioningKey(
        id=row.id,
        name=row.name,
        device_type=row.device_type,
        profile_id=row.profile_id,
        group_id=row.group_id,
        tags=tuple(row.tags),
        is_enabled=row.is_enabled,
        expires_at=row.expires_at,
        max_devices=row.max_devices,
        devices=row.devices,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )
