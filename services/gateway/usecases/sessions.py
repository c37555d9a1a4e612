"""The life of a session: login, refresh, logout."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol
from uuid import UUID, uuid4

import msgspec

from libs.common.auth.principal import Kind
from libs.common.clock import Clock
from libs.common.db.acting import actor_now
from libs.common.db.transactions import Transactions
from libs.common.errors import Forbidden, Unauthenticated
from libs.common.events.audit import AuditEntry, AuditRecorded
from libs.common.events.gateway import SessionRevoked
from services.gateway.domain.access_token import Access, sign_access
from services.gateway.domain.account import Account, Invited
from services.gateway.domain.login import (
    PENDING_LIFETIME,
    Client,
    Gate,
    PendingLogin,
    Proof,
    SecondStep,
    gate,
    is_strong,
    new_pending_token,
)
from services.gateway.domain.secret import hash_secret, new_refresh_token, new_ticket
from services.gateway.domain.session import Ended, RefreshToken, Session, Verdict, judge
from services.gateway.store.lookups import Lookups
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.keyring import Keyring

LOGGED_IN = "login.succeeded"
"""What the audit trail calls the opening of a session, unless it was another way in."""


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

    async def verify_registration(self, token: str, password: str) -> Invited:
        """Let who registered join. Raises Unauthenticated, or Unavailable."""
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

    async def log_in(
        self, email: str, password: str, tenant_slug: str | None, client: Client
    ) -> Tokens | SecondStep:
        """Let somebody into the named tenant, else into their oldest.

        Raises Unauthenticated in the same words whatever was wrong, the tenant included.
        """
        account = await self._credentials.verify(email, password)
        if tenant_slug is not None:
            membership = account.membership_called(tenant_slug)
        else:
            membership = account.memberships[0] if account.memberships else None
        if membership is None:
            raise Unauthenticated("the email address or the password is wrong")
        return await self.enter(account, membership.tenant_id, (Proof.PASSWORD,), client)

    async def enter(
        self,
        account: Account,
        tenant_id: UUID,
        proofs: Collection[Proof],
        client: Client,
        *,
        action: str = LOGGED_IN,
        proved_at: datetime | None = None,
    ) -> Tokens | SecondStep:
        """Let a user into a tenant who has proved this much, `proved_at` (None: now): the one way in.

        `action` is what the audit trail calls it.

        Opens a session if that is enough, else says what is missing. Raises Forbidden if they are
        no member of the tenant.
        """
        membership = account.membership_in(tenant_id)
        if membership is None:
            raise Forbidden("you are not a member of this tenant")
        now = self._clock.now()
        proved_at = proved_at or now
        found = gate(account, membership, proofs)
        if found is Gate.OPEN:
            async with self._transactions.begin(tenant_id) as store:
                return await self.open(
                    store, account.user_id, tuple(proofs), client, proved_at, action=action
                )
        token = new_pending_token()
        pending = PendingLogin(
            token_hash=hash_secret(token),
            tenant_id=tenant_id,
            user_id=account.user_id,
            proofs=tuple(proofs),
            enrols=found is Gate.ENROL,
            proved_at=proved_at,
            expires_at=now + PENDING_LIFETIME,
        )
        async with self._transactions.begin(tenant_id) as store:
            await store.pending_logins.add(pending)
        return SecondStep(
            token=token,
            factors=tuple(account.factors),
            enrols=pending.enrols,
            expires_in=int(PENDING_LIFETIME.total_seconds()),
        )

    async def invited_email(self, token: str) -> str | None:
        """Return the address of the account that this token invites; None for any other token."""
        invited = await self._credentials.invited(token)
        return None if invited is None else invited.email

    async def accept_invitation(
        self, token: str, password: str, client: Client
    ) -> Tokens | SecondStep:
        """Let an invited user join the tenant, and enter it.

        Raises Invalid for a password that no account can have; Unauthenticated if the invitation is
        not valid, or no longer, or the account has another password.
        """
        joined = await self._credentials.accept(token, password)
        return await self._join(joined, client, "invitation.accepted")

    async def verify_registration(
        self, token: str, password: str, client: Client
    ) -> Tokens | SecondStep:
        """Let who registered join the tenant, and enter it.

        Raises Unauthenticated in the same words whatever was wrong.
        """
        joined = await self._credentials.verify_registration(token, password)
        return await self._join(joined, client, "registration.completed")

    async def enter_by_provider(self, user_id: UUID, tenant_id: UUID, client: Client) -> Tokens:
        """Open a session for whom a tenant's identity provider let in: for that tenant alone.

        Nothing of the user's own was shown: what protects the account takes the password besides.
        Raises Unauthenticated, or Unavailable.
        """
        # They may be new, or have other roles than a moment ago.
        self._accounts.forget(user_id)
        account = await self._accounts.get(user_id, fresh=True)
        if account is None or account.membership_in(tenant_id) is None:
            raise Unauthenticated("the user may not enter this tenant any more")
        async with self._transactions.begin(tenant_id) as store:
            return await self.open(store, user_id, (Proof.SSO,), client, None)

    async def switch(self, access: Access, tenant_id: UUID, client: Client) -> Tokens | SecondStep:
        """Let the user of a session into another tenant of theirs, by what they proved at its login.

        Raises Forbidden.
        """
        account = await self._accounts.get(access.user_id, fresh=True)
        if account is None:
            raise Forbidden("you are not a member of this tenant")
        session = await self.get(access)
        if session.by_provider:
            raise Forbidden(
                "your tenant's identity provider lets you into that tenant alone: log in to the"
                " other one with your own password or passkey"
            )
        return await self.enter(
            account,
            tenant_id,
            session.proofs,
            client,
            action="tenant.entered",
            # Never now: entering another tenant shows nothing again.
            proved_at=session.proved_at or session.created_at,
        )

    async def get(self, access: Access) -> Session:
        """Return the session of an access token. Raises Unauthenticated if it has ended."""
        async with self._transactions.begin(access.tenant_id) as store:
            session = await store.sessions.get(access.session_id)
        if not session.is_open(self._clock.now()):
            raise Unauthenticated("the session has ended")
        return session

    async def prove(self, access: Access, email: str, password: str) -> None:
        """Note that the user of a session has shown the password again.

        Raises Unauthenticated; Forbidden if the account has a second factor that this session was
        opened without: the password alone must not take that away.
        """
        account = await self._credentials.verify(email, password)
        if account.user_id != access.user_id:
            raise Unauthenticated("the email address or the password is wrong")
        session = await self.get(access)
        if account.factors and not is_strong(session.proofs):
            raise Forbidden(
                "this session was opened without your second factor: log in with it to change what"
                " protects your account"
            )
        async with self._transactions.begin(access.tenant_id) as store:
            await store.sessions.note_proof(access.session_id, self._clock.now())

    async def of_user(
        self, tenant_id: UUID, user_id: UUID, *, limit: int, before: tuple[datetime, UUID] | None
    ) -> list[Session]:
        """Return up to `limit` of a user's open sessions in a tenant, the newest first."""
        async with self._transactions.begin(tenant_id) as store:
            return await store.sessions.open_of_user(
                user_id, self._clock.now(), limit=limit, before=before
            )

    async def refresh(self, token: str, client: Client) -> Tokens:
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
                await store.sessions.note_seen(session.id, client, now)
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
        besides: UUID | None = None,
    ) -> int:
        """End the open sessions of an id, of a user (`besides` one), or of the whole tenant.

        Return how many.
        """
        async with self._transactions.begin(tenant_id) as store:
            ended = await _revoke(
                store,
                because=because,
                at=self._clock.now(),
                session_id=session_id,
                user_id=user_id,
                besides=besides,
            )
        self._revoke_here(ended)
        return len(ended)

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
            by_provider=session.by_provider,
        )

    async def _join(self, joined: Invited, client: Client, action: str) -> Tokens | SecondStep:
        """Let somebody in who has just joined, by the password."""
        # What is remembered of them is without this tenant. (Other replicas hear of it.)
        self._accounts.forget(joined.user_id)
        account = await self._accounts.get(joined.user_id, fresh=True)
        if account is None or account.membership_in(joined.tenant_id) is None:
            raise Unauthenticated("the user may not enter this tenant any more")
        return await self.enter(account, joined.tenant_id, (Proof.PASSWORD,), client, action=action)

    async def open(
        self,
        store: GatewayStore,
        user_id: UUID,
        proofs: tuple[Proof, ...],
        client: Client,
        proved_at: datetime | None,
        *,
        action: str = LOGGED_IN,
    ) -> Tokens:
        """Open a session within a transaction of its tenant, for who has passed the gate."""
        now = self._clock.now()
        session = Session(
            id=uuid4(),
            tenant_id=store.tenant_id,
            user_id=user_id,
            created_at=now,
            expires_at=now + self.lifetimes.session,
            client=client,
            proofs=proofs,
            proved_at=proved_at,
            last_seen_at=now,
        )
        await store.sessions.add(session)
        _record(store, action, session, at=now, by=user_id, detail={"methods": " ".join(proofs)})
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
        access = Access(
            user_id=session.user_id,
            tenant_id=session.tenant_id,
            session_id=session.id,
            token_id=uuid4(),
            issued_at=now,
            expires_at=expires_at,
            by_provider=session.by_provider,
        )
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
    store: GatewayStore,
    *,
    because: Ended,
    at: datetime,
    user_id: UUID | None = None,
    besides: UUID | None = None,
) -> None:
    """End the open sessions of a user, or of the whole tenant, `besides` one, in a handler's transaction."""
    await _revoke(store, because=because, at=at, user_id=user_id, besides=besides)


async def _revoke(
    store: GatewayStore,
    *,
    because: Ended,
    at: datetime,
    session_id: UUID | None = None,
    user_id: UUID | None = None,
    besides: UUID | None = None,
) -> list[Session]:
    ended = await store.sessions.revoke(
        because=because, at=at, session_id=session_id, user_id=user_id, besides=besides
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
        _record_end(store, session, because, at=at)
    return ended


def _record_end(store: GatewayStore, session: Session, because: Ended, *, at: datetime) -> None:
    match because:
        case Ended.LOGGED_OUT:
            _record(store, "logout", session, at=at, by=session.user_id)
        case Ended.REUSED:
            # By the thief, or by the one who was robbed.
            _record(store, "refresh_token.reused", session, at=at, outcome="denied")
        case _:
            _record(store, "session.revoked", session, at=at, detail={"reason": because.value})


def _record(
    store: GatewayStore,
    action: str,
    session: Session,
    *,
    at: datetime,
    by: UUID | None = None,
    outcome: Literal["ok", "denied"] = "ok",
    detail: dict[str, str] | None = None,
) -> None:
    """Say for the audit trail what became of a session; `by` whom, if that is proved only now."""
    actor = actor_now()
    if by is not None:
        actor = msgspec.structs.replace(actor, kind=Kind.USER, id=by, session_id=session.id)
    told = {"user_id": str(session.user_id), **(detail or {})}
    entry = AuditEntry(
        action=action,
        resource="session",
        resource_id=str(session.id),
        outcome=outcome,
        detail=told,
    )
    store.emit(
        AuditRecorded(
            tenant_id=session.tenant_id, at=at, service="gateway", actor=actor, entries=[entry]
        )
    )


def _refusal() -> Unauthenticated:
    return Unauthenticated("the refresh token is not valid, or no longer")
