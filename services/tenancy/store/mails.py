"""Mail that is to be sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, delete, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from services.tenancy.domain.mail import Mail, MailStatus, Purpose
from services.tenancy.store.tables import MailRow

_CLAIM = text(
    """
    UPDATE tenancy.mails m
    SET attempts = m.attempts + 1, due_at = (SELECT sec.iiot_now()) + :lease
    FROM (
      SELECT tenant_id, id FROM tenancy.mails
      WHERE status = 'waiting' AND due_at <= (SELECT sec.iiot_now())
      ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED) due
    WHERE m.tenant_id = due.tenant_id AND m.id = due.id
    RETURNING m.tenant_id, m.id
    """
)


class Mails:
    """The mail of one tenant. `sends_mail`: whether this installation has a mail server at all."""

    def __init__(self, session: AsyncSession, tenant_id: UUID, *, sends_mail: bool) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self.sends_mail = sends_mail

    async def post(self, purpose: Purpose, email: str, *, about: UUID | None, at: datetime) -> None:
        """Let a mail be sent once the transaction has committed; without a mail server, nothing."""
        if not self.sends_mail:
            return
        self._session.add(
            MailRow(
                tenant_id=self._tenant_id,
                id=uuid4(),
                purpose=purpose,
                email=email,
                about=about,
                status=MailStatus.WAITING,
                created_at=at,
                due_at=at,
                attempts=0,
            )
        )
        await self._session.flush()

    async def get(self, mail_id: UUID) -> Mail | None:
        """Return a mail that waits; None if there is none any more."""
        row = await self._session.scalar(
            select(MailRow).where(
                MailRow.tenant_id == self._tenant_id,
                MailRow.id == mail_id,
                MailRow.status == MailStatus.WAITING,
            )
        )
        return None if row is None else _to_mail(row)

    async def page(self, limit: int, after: tuple[datetime, UUID] | None) -> Sequence[Mail]:
        """Return up to `limit` mails that were not sent yet, or were given up, oldest first."""
        query = (
            select(MailRow)
            .where(MailRow.tenant_id == self._tenant_id)
            .order_by(MailRow.created_at, MailRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(MailRow.created_at, MailRow.id) > after)
        return [_to_mail(row) for row in await self._session.scalars(query)]

    async def put_off(self, mail_id: UUID, until: datetime, reason: str) -> None:
        """Let a mail be tried again then."""
        await self._session.execute(
            update(MailRow).where(*self._is(mail_id)).values(due_at=until, reason=reason)
        )

    async def give_up(self, mail_id: UUID, reason: str) -> None:
        """Note that a mail was not sent and will not be."""
        await self._session.execute(
            update(MailRow)
            .where(*self._is(mail_id))
            .values(status=MailStatus.GIVEN_UP, reason=reason)
        )

    async def remove(self, mail_id: UUID) -> None:
        """Forget a mail that was sent, or says nothing any more."""
        await self._session.execute(delete(MailRow).where(*self._is(mail_id)))

    def _is(self, mail_id: UUID) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return MailRow.tenant_id == self._tenant_id, MailRow.id == mail_id


@dataclass(frozen=True, slots=True)
class DueMails:
    """The mails of all tenants that are due. `engine` crosses tenants; what a mail says it cannot read."""

    engine: Database
    lease: timedelta

    async def claim(self, most: int) -> list[tuple[UUID, UUID]]:
        """Claim up to so many, as tenant and id. Unless recorded, they are due again after the lease."""
        async with self.engine.connection() as connection:
            rows = await connection.execute(_CLAIM, {"most": most, "lease": self.lease})
            return [(row.tenant_id, row.id) for row in rows]

    async def forget_given_up(self, before: datetime) -> None:
        """Remove the mails that were given up and are older."""
        async with self.engine.connection() as connection:
            await connection.execute(
                text(
                    "DELETE FROM tenancy.mails WHERE status = 'given_up' AND created_at < :before"
                ),
                {"before": before},
            )


def _to_mail(row: MailRow) -> Mail:
    return Mail(
        id=row.id,
        purpose=Purpose(row.purpose),
        email=row.email,
        about=row.about,
        created_at=row.created_at,
        status=MailStatus(row.status),
        attempts=row.attempts,
        reason=row.reason,
    )
