"""API keys: those of one tenant, and whose a secret is before the tenant is known."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from uuid import UUID

from sqlalchemy import Select, and_, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.auth.api_key import NewSecret
from libs.common.db.engine import Database
from libs.common.errors import NotFound
from services.tenancy.domain.api_key import ApiKey, FoundKey, Use
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.store.tables import ApiKeyRow, ApiKeyUseRow, MembershipRow


class ApiKeys:
    """The keys of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def count(self) -> int:
        """Return how many there are. Lock the tenant before."""
        query = select(func.count()).where(ApiKeyRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def add(self, key: ApiKey, secret: NewSecret) -> None:
        """Keep a new key, and the hash of its secret."""
        self._session.add(
            ApiKeyRow(
                tenant_id=self._tenant_id,
                id=key.id,
                handle=key.handle,
                secret_hash=secret.key_hash,
                created_by=key.created_by,
                created_at=key.created_at,
                **_changeable(key),
            )
        )
        await self._session.flush()

    async def get(self, key_id: UUID) -> ApiKey:
        """Return a key. Raises NotFound."""
        found = (
            await self._session.execute(self._keys().where(ApiKeyRow.id == key_id))
        ).one_or_none()
        if found is None:
            raise NotFound(f"no API key {key_id}")
        return _to_key(*found)

    async def lock(self, key_id: UUID) -> ApiKey:
        """Return a key that nobody else changes until the transaction ends. Raises NotFound."""
        await self._row(key_id, lock=True)
        return await self.get(key_id)

    async def page(self, limit: int, after: tuple[datetime, UUID] | None) -> list[ApiKey]:
        """Return up to `limit` keys, oldest first, after the given (created_at, id)."""
        query = self._keys().order_by(ApiKeyRow.created_at, ApiKeyRow.id).limit(limit)
        if after is not None:
            query = query.where(tuple_(ApiKeyRow.created_at, ApiKeyRow.id) > after)
        return [_to_key(*found) for found in await self._session.execute(query)]

    async def update(self, key: ApiKey) -> None:
        """Save what may change of a key. Raises NotFound."""
        row = await self._row(key.id)
        for name, value in _changeable(key).items():
            setattr(row, name, value)

    async def renew(self, key: ApiKey, secret: NewSecret) -> None:
        """Let a key have another secret; the one before is good until `overlap_until`."""
        row = await self._row(key.id)
        row.previous_hash, row.secret_hash = row.secret_hash, secret.key_hash
        await self.update(key)

    async def remove(self, key_id: UUID) -> None:
        """Remove a key. Raises NotFound."""
        await self._session.delete(await self._row(key_id))
        await self._session.flush()

    async def note_uses(self, uses: Iterable[Use]) -> None:
        """Note when keys were used; of keys that are no more nothing is kept."""
        for use in uses:
            is_there = select(ApiKeyRow.id).where(
                ApiKeyRow.tenant_id == self._tenant_id, ApiKeyRow.id == use.key_id
            )
            # Held, so that it is not removed in between.
            if await self._session.scalar(is_there.with_for_update(key_share=True)) is None:
                continue
            note = insert(ApiKeyUseRow).values(
                tenant_id=self._tenant_id, key_id=use.key_id, used_at=use.at, address=use.address
            )
            await self._session.execute(
                note.on_conflict_do_update(
                    index_elements=["tenant_id", "key_id"],
                    set_={"used_at": note.excluded.used_at, "address": note.excluded.address},
                    where=ApiKeyUseRow.used_at < note.excluded.used_at,
                )
            )

    def _keys(self) -> Select[ApiKeyRow, str | None, datetime | None, str | None]:
        return (
            select(ApiKeyRow, MembershipRow.name, ApiKeyUseRow.used_at, ApiKeyUseRow.address)
            .outerjoin(
                MembershipRow,
                and_(
                    MembershipRow.tenant_id == ApiKeyRow.tenant_id,
                    MembershipRow.user_id == ApiKeyRow.created_by,
                ),
            )
            .outerjoin(
                ApiKeyUseRow,
                and_(
                    ApiKeyUseRow.tenant_id == ApiKeyRow.tenant_id,
                    ApiKeyUseRow.key_id == ApiKeyRow.id,
                ),
            )
            .where(ApiKeyRow.tenant_id == self._tenant_id)
        )

    async def _row(self, key_id: UUID, *, lock: bool = False) -> ApiKeyRow:
        query = select(ApiKeyRow).where(
            ApiKeyRow.tenant_id == self._tenant_id, ApiKeyRow.id == key_id
        )
        if lock:
            query = query.with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no API key {key_id}")
        return row


@dataclass(frozen=True, slots=True)
class ApiKeyHolders:
    """Finds whose a key is, as role `tenancy_engine`, by its look-up alone."""

    engine: Database

    async def holder_of(self, key_hash: bytes) -> FoundKey | None:
        """Return what is found by a key's hash, be it good or not; None if it is nobody's."""
        async with self.engine.connection() as connection:
            row = (
                await connection.execute(
                    text("SELECT * FROM tenancy.api_key_of_hash(:hash)"), {"hash": key_hash}
                )
            ).one_or_none()
        if row is None:
            return None
        return FoundKey(
            tenant_id=row.tenant_id,
            key_id=row.key_id,
            tenant_status=TenantStatus(row.tenant_status),
            tenant_plan=row.tenant_plan,
            scopes=row.scopes,
            allowed_networks=row.allowed_networks,
            device_groups=row.device_groups,
            good_until=row.good_until,
        )


def _changeable(key: ApiKey) -> dict[str, object]:
    return {
        "name": key.name,
        "scopes": list(key.scopes),
        "allowed_networks": [str(network) for network in key.allowed_networks],
        "device_groups": None if key.device_groups is None else sorted(key.device_groups),
        "expires_at": key.expires_at,
        "overlap_until": key.overlap_until,
        "updated_at": key.updated_at,
        "version": key.version,
    }


def _to_key(
    row: ApiKeyRow, made_by: str | None, used_at: datetime | None, address: str | None
) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        handle=row.handle,
        scopes=tuple(row.scopes),
        allowed_networks=tuple(ip_network(network) for network in row.allowed_networks),
        device_groups=None if row.device_groups is None else frozenset(row.device_groups),
        expires_at=row.expires_at,
        overlap_until=row.overlap_until,
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
        created_by_name=made_by,
        last_used_at=used_at,
        last_used_address=address,
    )
