"""The life of a session: login, refresh, logout."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID, uuid4

from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.errors import Forbidden, Unauthenticated
from libs.common.events.gateway import SessionRevoked
from services.gateway.domain.access_token import Access, sign_access
from services.gateway.domain.account import Account, Invited
from services.gateway.domain.secret import hash_secret, new_refresh_token, new_ticket
from services.gateway.domain.session import Ended, RefreshToken, Session, Verdict, judge
from services.gateway.store.lookups import Lookups
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.keyring import Keyring


class Credentials(Protocol):
    """Knows who has which password, and who was invited."""

    async def verify(self, email: str, password: str) -> Account:
        """Return who has this address and password. Raises Unauthenticated, or Unavailable."""
        ...

    async def invited(self, token: str) -> Invited | None:
        """Return whom this token invites; None if it is not valid, or no longer. Raises Unavailable."""
        ...

    async def accept(self, token: str, password: str) -> Invited:
        """Let the invited user join. Raises Invalid, Unauthenticated, or Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things last. A refresh token lasts from its issue, a session from the login."""

    access: timedelta
    refresh: timedelta
    session: timedelta
    ticket: timedelta


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a client is given."""

    access_token: str
    refresh_token: str
    expires_in: int


class Sessions:
    """Opens, continues and ends sessions. Each method is a door's whole work: one transaction."""

    def __init__(
        self,
        transactions: Transactions[GatewayStore],
        lookups: Lookups,
        credentials: Credentials,
        accounts: Accounts,
        callers: Callers,
        keyring: Keyring,
        clock: Clock,
        lifetimes: Lifetimes,
    ) -> None:
        self._transactions = transactions
        self._lookups = lookups
        self._credentials = credentials
        self._accounts = accounts
        self._callers = callers
        self._keyring = keyring
        self._clock = clock
        self.lifetimes = lifetimes

    async def log_in(self, email: str, password: str, tenant_slug: str | None) -> Tokens:
        """Open a session in the named tenant, else in the user's oldest.

        Raises Unauthenticated in the same words whatever was wrong, the tenant included.
        """
        account = await self._credentials.verify(email, password)
        if tenant_slug is not None:
            membership = account.membership_called(tenant_slug)
        else:
            membership = account.memberships[0] if account.memberships else None
        if membership is None:
            raise Unauthenticated("the email address or the password is wrong")
        return await self._open(account.user_id, membership.tenant_id)

    async def invited_email(self, token: str) -> str | None:
        """Return the address of the account that this token invites; None for any other token."""
        invited = await self._credentials.invited(token)
        return None if invited is None else invited.email

    async def accept_invitation(self, token: str, password: str) -> Tokens:
        """Let an invited user join the tenant, and open their first session in it.

        Raises Invalid for a password that no account can have; Unauthenticated if the invitation is
        not valid, or no longer, or the account has another password.
        """
        joined = await self._credentials.accept(token, password)
        # What is remembered of them is without this tenant. (Other replicas hear of it.)
        self._accounts.forget(joined.user_id)
        return await self._open(joined.user_id, joined.tenant_id)

    async def switch(self, user_id: UUID, tenant_id: UUID) -> Tokens:
        """Open a session of the same user in another tenant of theirs. Raises Forbidden."""
        account = await self._accounts.get(user_id, fresh=True)
        if account is None or account.membership_in(tenant_id) is None:
            raise Forbidden("you are not a member of this tenant")
        return await self._open(user_id, tenant_id)

    async def refresh(self, token: str) -> Tokens:
        """Exchange a refresh token for new tokens. Raises Unauthenticated, or Unavailable.

        A token that was used before ends its session, unless it is the immediate predecessor and
        its use was just now. So does the second one to be used of several that were got for one.
        """
        token_hash = hash_secret(token)
        holder = await self._lookups.holder_of_refresh_token(token_hash)
        if holder is None:
            raise _refusal()
        # Asked before the transaction: nobody waits for the network with a lock in hand.
        account = await self._accounts.get(holder.user_id, fresh=True)
        may_enter = account is not None and account.membership_in(holder.tenant_id) is not None
        if not may_enter:
            await self.end(holder.tenant_id, because=Ended.LEFT, session_id=holder.session_id)
            raise _refusal()
        tokens: Tokens | None = None
        async with self._transactions.begin(holder.tenant_id) as store:
            session = await store.sessions.get(holder.session_id)
            presented = await store.sessions.refresh_token(token_hash)
            now = self._clock.now()
            parent_hash = presented.parent_hash
            verdict = judge(
                session,
                presented,
                successor_used=await store.sessions.is_successor_used(token_hash, session.id),
                sibling_used=parent_hash is not None
                and await store.sessions.is_successor_used(
                    parent_hash, session.id, besides=token_hash
                ),
                now=now,
            )
            if verdict is Verdict.ROTATE:
                await store.sessions.mark_used(token_hash, now)
                tokens = await self._issue(store, session, parent_hash=token_hash, now=now)
            elif verdict is Verdict.REVOKE_FAMILY:
                ended = await _revoke(store, because=Ended.REUSED, at=now, session_id=session.id)
        if verdict is Verdict.REVOKE_FAMILY:
            self._revoke_here(ended)
        if tokens is None:
            raise _refusal()
        return tokens

    async def end(
        self,
        tenant_id: UUID,
        *,
        because: Ended,
        session_id: UUID | None = None,
        user_id: UUID | None = None,
    ) -> None:
        """End the open sessions of an id, of a user, or of the whole tenant."""
        async with self._transactions.begin(tenant_id) as store:
            ended = await _revoke(
                store,
                because=because,
                at=self._clock.now(),
                session_id=session_id,
                user_id=user_id,
            )
        self._revoke_here(ended)

    async def log_out(self, token: str) -> None:
        """End the session of a refresh token; an unknown one is none to end."""
        holder = await self._lookups.holder_of_refresh_token(hash_secret(token))
        if holder is not None:
            await self.end(holder.tenant_id, because=Ended.LOGGED_OUT, session_id=holder.session_id)

    async def issue_ticket(self, access: Access) -> str:
        """Return a ticket that opens one live connection of this session, soon."""
        ticket = new_ticket()
        async with self._transactions.begin(access.tenant_id) as store:
            session = await store.sessions.get(access.session_id)
            now = self._clock.now()
            if not session.is_open(now):
                raise Unauthenticated("the session has ended")
            await store.sessions.add_ticket(
                hash_secret(ticket),
                session_id=access.session_id,
                user_id=access.user_id,
                expires_at=now + self.lifetimes.ticket,
            )
        return ticket

    async def take_ticket(self, ticket: str) -> Access:
        """Use a ticket up; return the session it stands for, as an access until its end.

        Raises Unauthenticated if it is unknown, used, too old, or its session has ended.
        """
        now = self._clock.now()
        holder = await self._lookups.take_ticket(hash_secret(ticket), now)
        if holder is None:
            raise Unauthenticated("the ticket is not valid, or no longer")
        async with self._transactions.begin(holder.tenant_id) as store:
            session = await store.sessions.get(holder.session_id)
        if not session.is_open(now):
            raise Unauthenticated("the session has ended")
        return Access(
            user_id=session.user_id,
            tenant_id=session.tenant_id,
            session_id=session.id,
            token_id=uuid4(),
            issued_at=now,
            expires_at=session.expires_at,
        )

    async def _open(self, user_id: UUID, tenant_id: UUID) -> Tokens:
        now = self._clock.now()
        session = Session(uuid4(), tenant_id, user_id, now, now + self.lifetimes.session)
        async with self._transactions.begin(tenant_id) as store:
            await store.sessions.add(session)
            return await self._issue(store, session, parent_hash=None, now=now)

    async def _issue(
        self, store: GatewayStore, session: Session, *, parent_hash: bytes | None, now: datetime
    ) -> Tokens:
        refresh_token = new_refresh_token()
        await store.sessions.add_refresh_token(
            RefreshToken(
                token_hash=hash_secret(refresh_token),
                session_id=session.id,
                parent_hash=parent_hash,
                expires_at=min(now + self.lifetimes.refresh, session.expires_at),
            )
        )
        expires_at = min(now + self.lifetimes.access, session.expires_at)
        access = Access(session.user_id, session.tenant_id, session.id, uuid4(), now, expires_at)
        return Tokens(
            access_token=sign_access(access, self._keyring.signing()),
            refresh_token=refresh_token,
            expires_in=int((expires_at - now).total_seconds()),
        )

    def _revoke_here(self, ended: list[Session]) -> None:
        """Let this replica know at once; the others hear the event."""
        until = self._clock.now() + self.lifetimes.access
        for session in ended:
            self._callers.revoke(session.id, until)


async def revoke_sessions(
    store: GatewayStore, *, because: Ended, at: datetime, user_id: UUID | None = None
) -> None:
    """End the open sessions of a user, or of the whole tenant, within a handler's transaction."""
    await _revoke(store, because=because, at=at, user_id=user_id)


async def _revoke(
    store: GatewayStore,
    *,
    because: Ended,
    at: datetime,
    session_id: UUID | None = None,
    user_id: UUID | None = None,
) -> list[Session]:
    ended = await store.sessions.revoke(
        because=because, at=at, session_id=session_id, user_id=user_id
    )
    for session in ended:
        store.emit(
            SessionRevoked(
                tenant_id=session.tenant_id,
                at=at,
                session_id=session.id,
                user_id=session.user_id,
                reason=because,
            )
        )
    return ended


def _refusal() -> Unauthenticated:
    return Unauthenticated("the refresh token is not valid, or no longer")
