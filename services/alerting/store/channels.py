"""Where a tenant's notices go."""

from uuid import UUID

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from libs.common.severity import Severity
from services.alerting.domain.channel import Channel, ChannelKind, Email, Target, Webhook
from services.alerting.store.tables import ChannelRow


class Channels:
    """The channels of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._enabled: list[Channel] | None = None

    async def add(self, channel: Channel) -> None:
        """Keep a new channel. Raises Conflict if the tenant has one of that name."""
        row = ChannelRow(tenant_id=self._tenant_id, id=channel.id, created_at=channel.created_at)
        _fill(row, channel)
        await self._save(row, channel.name)

    async def count(self) -> int:
        """Return how many the tenant has."""
        query = select(func.count()).where(ChannelRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, channel_id: UUID, *, lock: bool = False) -> Channel:
        """Return a channel, locked until the transaction ends if asked. Raises NotFound."""
        return _to_channel(await self._row(channel_id, lock=lock))

    async def find(self, channel_id: UUID, *, lock: bool = False) -> Channel | None:
        """Return a channel, or None if it was removed."""
        try:
            return await self.get(channel_id, lock=lock)
        except NotFound:
            return None

    async def enabled(self) -> list[Channel]:
        """Return the channels that are switched on, read once in this transaction."""
        if self._enabled is None:
            query = select(ChannelRow).where(
                ChannelRow.tenant_id == self._tenant_id, ChannelRow.enabled
            )
            self._enabled = [_to_channel(row) for row in await self._session.scalars(query)]
        return self._enabled

    async def page(self, limit: int, after: tuple[str, UUID] | None) -> list[Channel]:
        """Return up to `limit` channels by name, after the given (name, id)."""
        query = (
            select(ChannelRow)
            .where(ChannelRow.tenant_id == self._tenant_id)
            .order_by(ChannelRow.name, ChannelRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(ChannelRow.name, ChannelRow.id) > after)
        return [_to_channel(row) for row in await self._session.scalars(query)]

    async def update(self, channel: Channel) -> None:
        """Save a channel. Raises NotFound, or Conflict if its new name is taken."""
        row = await self._row(channel.id)
        _fill(row, channel)
        await self._save(row, channel.name)

    async def remove(self, channel_id: UUID) -> None:
        """Remove a channel with its secret. Raises NotFound."""
        removed = await self._session.scalar(
            delete(ChannelRow)
            .where(ChannelRow.tenant_id == self._tenant_id, ChannelRow.id == channel_id)
            .returning(ChannelRow.id)
        )
        if removed is None:
            raise _no_channel(channel_id)

    async def _row(self, channel_id: UUID, *, lock: bool = False) -> ChannelRow:
        query = select(ChannelRow).where(
            ChannelRow.tenant_id == self._tenant_id, ChannelRow.id == channel_id
        )
        if lock:
            query = query.with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            raise _no_channel(channel_id)
        return row

    async def _save(self, row: ChannelRow, name: str) -> None:
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "channels_tenant_id_name_key" in str(error.orig):
                raise Conflict(f"there is a channel named {name!r} already") from error
            raise


def _no_channel(channel_id: UUID) -> NotFound:
    return NotFound(f"there is no notification channel {channel_id}")


def _fill(row: ChannelRow, channel: Channel) -> None:
    match channel.target:
        case Email(address):
            row.config, row.secret = {"address": address}, None
        case Webhook(url, secret):
            row.config, row.secret = {"url": url}, secret
    row.name = channel.name
    row.kind = channel.kind.value
    row.enabled = channel.is_enabled
    row.disabled_reason = channel.disabled_reason
    row.min_severity = channel.min_severity.value
    row.updated_at = channel.updated_at
    row.version = channel.version


def _to_channel(row: ChannelRow) -> Channel:
    target: Target
    match ChannelKind(row.kind):
        case ChannelKind.EMAIL:
            target = Email(row.config["address"])
        case ChannelKind.WEBHOOK:
            target = Webhook(row.config["url"], row.secret or "")
    return Channel(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        target=target,
        is_enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        min_severity=Severity(row.min_severity),
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )
