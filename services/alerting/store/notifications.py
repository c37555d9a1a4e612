"""Notices on their way, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.alerting.domain.channel import Channel, ChannelKind
from services.alerting.domain.notice import NoticeKind
from services.alerting.domain.notification import Notification, Status, notification_id
from services.alerting.store.tables import NotificationRow

_NOW = func.sec.iiot_now()


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to deliver one notification, until the lease ends."""

    tenant_id: UUID
    notification_id: UUID
    channel_id: UUID
    token: UUID


class Notifications:
    """The notifications of one tenant. Whoever delivers one must still hold its claim."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self.has_due = False
        """Whether this transaction made something due at once."""

    async def add(self, alert_id: UUID, channels: Sequence[Channel], kind: NoticeKind) -> None:
        """Let a notice go out to channels now; one that was added before is left as it is."""
        rows = [(channel.id, channel.name, channel.kind.value) for channel in channels]
        await self._insert(alert_id, rows, kind)

    async def follow_up(self, alert_id: UUID, kind: NoticeKind) -> None:
        """Let a notice go out to the channels that were told of the alert, or may have been.

        What they were to be told and nobody has begun to tell is superseded.
        """
        first = (
            NotificationRow.tenant_id == self._tenant_id,
            NotificationRow.alert_id == alert_id,
            NotificationRow.kind == NoticeKind.OPENED.value,
        )
        await self._session.execute(
            update(NotificationRow)
            .where(*first, NotificationRow.status == Status.PENDING.value)
            .values(
                status=Status.SUPERSEDED.value,
                finished_at=_NOW,
                reason=f"the alert was {kind} before it could be told",
            )
            .execution_options(synchronize_session=False)
        )
        told = await self._session.execute(
            select(
                NotificationRow.channel_id,
                NotificationRow.channel_name,
                NotificationRow.channel_kind,
            ).where(
                *first,
                NotificationRow.attempts > 0,
                NotificationRow.status != Status.DEAD.value,
            )
        )
        await self._insert(alert_id, [(channel, name, way) for channel, name, way in told], kind)

    async def claimed(self, claim: Claim) -> Notification | None:
        """Return what the claim is for, or None if the lease is lost."""
        row = await self._session.scalar(
            select(NotificationRow).where(
                NotificationRow.tenant_id == self._tenant_id,
                NotificationRow.id == claim.notification_id,
                NotificationRow.lease_token == claim.token,
            )
        )
        return _to_notification(row) if row is not None else None

    async def deliver(self, claim: Claim, receipt: str) -> bool:
        """Note that it was taken. False: the lease was lost, nothing is noted."""
        return await self._finish(claim, Status.DELIVERED, reason="", receipt=receipt[:500])

    async def give_up(self, claim: Claim, reason: str) -> bool:
        """Note that it will never go. False: the lease was lost, nothing is noted."""
        return await self._finish(claim, Status.DEAD, reason=reason)

    async def supersede(self, claim: Claim, reason: str) -> bool:
        """Note that it need not go, and that this was no attempt. False: the lease was lost."""
        return await self._finish(
            claim, Status.SUPERSEDED, reason=reason, attempts=NotificationRow.attempts - 1
        )

    async def postpone(self, claim: Claim, wait: timedelta, reason: str) -> bool:
        """Let it be tried again after a while. False: the lease was lost, nothing is noted."""
        return await self._note(
            claim, status=Status.PENDING.value, due_at=_NOW + wait, reason=reason[:500]
        )

    async def supersede_all_to(self, channel_id: UUID, reason: str) -> None:
        """Note that what waits for a channel need not go any more."""
        await self._session.execute(
            update(NotificationRow)
            .where(
                NotificationRow.tenant_id == self._tenant_id,
                NotificationRow.channel_id == channel_id,
                NotificationRow.status == Status.PENDING.value,
            )
            .values(status=Status.SUPERSEDED.value, finished_at=_NOW, reason=reason)
            .execution_options(synchronize_session=False)
        )

    async def of_alert(
        self, alert_id: UUID, limit: int, after: int
    ) -> list[tuple[int, Notification]]:
        """Return up to `limit` of an alert's notifications with their places, after a place."""
        query = (
            select(NotificationRow)
            .where(
                NotificationRow.tenant_id == self._tenant_id,
                NotificationRow.alert_id == alert_id,
                NotificationRow.seq > after,
            )
            .order_by(NotificationRow.seq)
            .limit(limit)
        )
        return [(row.seq, _to_notification(row)) for row in await self._session.scalars(query)]

    async def _insert(
        self, alert_id: UUID, channels: Sequence[tuple[UUID, str, str]], kind: NoticeKind
    ) -> None:
        if not channels:
            return
        await self._session.execute(
            insert(NotificationRow)
            .values(
                [
                    {
                        "tenant_id": self._tenant_id,
                        "id": notification_id(alert_id, channel_id, kind),
                        "alert_id": alert_id,
                        "channel_id": channel_id,
                        "channel_name": name,
                        "channel_kind": channel_kind,
                        "kind": kind.value,
                        "due_at": _NOW,
                        "created_at": _NOW,
                    }
                    for channel_id, name, channel_kind in channels
                ]
            )
            .on_conflict_do_nothing()
        )
        self.has_due = True

    async def _finish(self, claim: Claim, status: Status, **values: object) -> bool:
        return await self._note(claim, status=status.value, finished_at=_NOW, **values)

    async def _note(self, claim: Claim, **values: object) -> bool:
        noted = await self._session.scalar(
            update(NotificationRow)
            .where(
                NotificationRow.tenant_id == self._tenant_id,
                NotificationRow.id == claim.notification_id,
                NotificationRow.lease_token == claim.token,
            )
            .values(lease_token=None, **values)
            .returning(NotificationRow.id)
            .execution_options(synchronize_session=False)
        )
        return noted is not None


def _to_notification(row: NotificationRow) -> Notification:
    return Notification(
        id=row.id,
        tenant_id=row.tenant_id,
        alert_id=row.alert_id,
        channel_id=row.channel_id,
        channel_name=row.channel_name,
        channel_kind=ChannelKind(row.channel_kind),
        kind=NoticeKind(row.kind),
        status=Status(row.status),
        attempts=row.attempts,
        created_at=row.created_at,
        due_at=row.due_at,
        finished_at=row.finished_at,
        reason=row.reason,
        receipt=row.receipt,
    )
