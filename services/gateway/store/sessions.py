"""Sessions, refresh tokens and tickets of one tenant."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, exists, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import NotFound
from services.gateway.domain.login import Client, Proof
from services.gateway.domain.session import Ended, RefreshToken, Session
from services.gateway.store.tables import RefreshTokenRow, SessionRow, TicketRow


class Sessions:
    """The sessions of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, session: Session) -> None:
        """Open a session."""
        self._session.add(
            SessionRow(
                tenant_id=self._tenant_id,
                id=session.id,
                user_id=session.user_id,
                created_at=session.created_at,
                expires_at=session.expires_at,
                address=session.client.address,
                user_agent=session.client.user_agent,
                proofs=list(session.proofs),
                proved_at=session.proved_at,
                last_seen_at=session.last_seen_at,
            )
        )
        await self._session.flush()

    async def open_of_user(
        self, user_id: UUID, now: datetime, *, limit: int, before: tuple[datetime, UUID] | None
    ) -> list[Session]:
        """Return up to `limit` of the user's open sessions, the newest first, from a place on."""
        query = (
            select(SessionRow)
            .where(
                SessionRow.tenant_id == self._tenant_id,
                SessionRow.user_id == user_id,
                SessionRow.revoked_at.is_(None),
                SessionRow.expires_at > now,
            )
            .order_by(SessionRow.created_at.desc(), SessionRow.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tuple_(SessionRow.created_at, SessionRow.id) < before)
        return [_to_session(row) for row in await self._session.scalars(query)]

    async def note_seen(self, session_id: UUID, client: Client, at: datetime) -> None:
        """Note that a session was continued, and from where."""
        await self._session.execute(
            update(SessionRow)
            .where(SessionRow.tenant_id == self._tenant_id, SessionRow.id == session_id)
            .values(last_seen_at=at, address=client.address, user_agent=client.user_agent)
        )

    async def note_proof(self, session_id: UUID, at: datetime) -> None:
        """Note that the user of a session has shown the password again."""
        await self._session.execute(
            update(SessionRow)
            .where(SessionRow.tenant_id == self._tenant_id, SessionRow.id == session_id)
            .values(proved_at=at)
        )

    async def get(self, session_id: UUID) -> Session:
        """Return a session, locked until the transaction ends. Raises NotFound."""
        query = (
            select(SessionRow)
            .where(SessionRow.tenant_id == self._tenant_id, SessionRow.id == session_id)
            .with_for_update()
        )
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no session {session_id}")
        return _to_session(row)

    async def revoke(
        self,
        *,
        because: Ended,
        at: datetime,
        session_id: UUID | None = None,
        user_id: UUID | None = None,
        besides: UUID | None = None,
    ) -> list[Session]:
        """End the open sessions of an id, of a user (`besides` one), or all; return those that ended now."""
        query = update(SessionRow).where(
            SessionRow.tenant_id == self._tenant_id,
            SessionRow.revoked_at.is_(None),
            SessionRow.expires_at > at,
        )
        if session_id is not None:
            query = query.where(SessionRow.id == session_id)
        if user_id is not None:
            query = query.where(SessionRow.user_id == user_id)
        if besides is not None:
            query = query.where(SessionRow.id != besides)
        ended = await self._session.scalars(
            query.values(revoked_at=at, revoked_because=because).returning(SessionRow)
        )
        return [_to_session(row) for row in ended]

    async def forget_ended(self, before: datetime) -> None:
        """Remove the sessions that were revoked or expired before, with their tokens and tickets."""
        await self._session.execute(
            delete(SessionRow).where(
                SessionRow.tenant_id == self._tenant_id,
                func.least(SessionRow.revoked_at, SessionRow.expires_at) < before,
            )
        )

    async def add_refresh_token(self, token: RefreshToken) -> None:
        """Keep a refresh token."""
        self._session.add(
            RefreshTokenRow(
                tenant_id=self._tenant_id,
                token_hash=token.token_hash,
                session_id=token.session_id,
                parent_hash=token.parent_hash,
                expires_at=token.expires_at,
            )
        )
        await self._session.flush()

    async def refresh_token(self, token_hash: bytes) -> RefreshToken:
        """Return a refresh token. Lock its session first. Raises NotFound."""
        query = select(RefreshTokenRow).where(
            RefreshTokenRow.tenant_id == self._tenant_id, RefreshTokenRow.token_hash == token_hash
        )
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound("no such refresh token")
        return RefreshToken(
            row.token_hash, row.session_id, row.parent_hash, row.expires_at, row.used_at
        )

    async def mark_used(self, token_hash: bytes, at: datetime) -> None:
        """Note the first use of a refresh token; a later one changes nothing."""
        await self._session.execute(
            update(RefreshTokenRow)
            .where(
                RefreshTokenRow.tenant_id == self._tenant_id,
                RefreshTokenRow.token_hash == token_hash,
                RefreshTokenRow.used_at.is_(None),
            )
            .values(used_at=at)
        )

    async def is_successor_used(
        self, token_hash: bytes, session_id: UUID, *, besides: bytes | None = None
    ) -> bool:
        """Whether any token that this one was exchanged for, `besides` one, has been used itself."""
        used = exists().where(
            RefreshTokenRow.tenant_id == self._tenant_id,
            RefreshTokenRow.session_id == session_id,
            RefreshTokenRow.parent_hash == token_hash,
            RefreshTokenRow.used_at.is_not(None),
        )
        if besides is not None:
            used = used.where(RefreshTokenRow.token_hash != besides)
        return bool(await self._session.scalar(select(used)))

    async def add_ticket(
        self, ticket_hash: bytes, *, session_id: UUID, user_id: UUID, expires_at: datetime
    ) -> None:
        """Keep a ticket."""
        self._session.add(
            TicketRow(
                tenant_id=self._tenant_id,
                ticket_hash=ticket_hash,
                session_id=session_id,
                user_id=user_id,
                expires_at=expires_at,
            )
        )
        await self._session.flush()


def _to_session(row: SessionRow) -> Session:
    return Session(
        id=row.id,
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        client=Client(row.address, row.user_agent),
        proofs=tuple(Proof(proof) for proof in row.proofs),
        proved_at=row.proved_at,
        last_seen_at=row.last_seen_at,
    )
