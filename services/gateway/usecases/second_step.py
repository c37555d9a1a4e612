"""The second step of a login: showing a second factor, or setting one up; and logging in by a passkey alone."""

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.errors import Unauthenticated
from services.gateway.adapters.factors import AddedPasskey, AppSetUp, Factors
from services.gateway.domain.login import (
    Client,
    PendingLogin,
    Proof,
    SecondStep,
    new_challenge,
)
from services.gateway.domain.passkey import (
    CHALLENGE_LIFETIME,
    Credential,
    Purpose,
    RelyingParty,
    challenge_of,
)
from services.gateway.domain.secret import hash_secret
from services.gateway.store.lookups import Lookups
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.attempts import Attempts
from services.gateway.usecases.sessions import Sessions, Tokens

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What somebody is given who has set up their first second factor: tokens, and recovery codes once."""

    tokens: Tokens
    recovery_codes: list[str] = field(repr=False)


class Passkeys:
    """Ceremonies with authenticators: each challenge is made here, and is good once, for its purpose."""

    def __init__(self, lookups: Lookups, factors: Factors, clock: Clock) -> None:
        self._lookups = lookups
        self._factors = factors
        self._clock = clock

    async def begin(self, user_id: UUID, site: RelyingParty, *, only_first: bool) -> dict[str, Any]:
        """Return what an authenticator makes a passkey of the user from. Raises Conflict."""
        challenge = await self._ask(Purpose.REGISTER, user_id)
        return await self._factors.begin_passkey(user_id, site, challenge, only_first=only_first)

    async def add(
        self,
        user_id: UUID,
        site: RelyingParty,
        credential: Credential,
        *,
        name: str,
        only_first: bool,
    ) -> AddedPasskey:
        """Keep the passkey that an authenticator made. Raises Unauthenticated or Conflict."""
        challenge = await self._answered(Purpose.REGISTER, user_id, credential)
        return await self._factors.add_passkey(
            user_id, site, challenge, credential, name=name, only_first=only_first
        )

    async def ask(self, user_id: UUID | None, site: RelyingParty) -> dict[str, Any]:
        """Return what a passkey proves itself by: one of the user's, or (None) anybody's."""
        challenge = await self._ask(_purpose(user_id), user_id)
        return await self._factors.ask_for_passkey(user_id, site, challenge)

    async def check(self, user_id: UUID | None, site: RelyingParty, credential: Credential) -> UUID:
        """Return whose passkey has proved itself. Raises Unauthenticated."""
        challenge = await self._answered(_purpose(user_id), user_id, credential)
        return await self._factors.check_passkey(user_id, site, challenge, credential)

    async def _ask(self, purpose: Purpose, user_id: UUID | None) -> str:
        challenge = _spelled(new_challenge())
        await self._lookups.keep_challenge(
            hash_secret(challenge), purpose, user_id, self._clock.now() + CHALLENGE_LIFETIME
        )
        return challenge

    async def _answered(
        self, purpose: Purpose, user_id: UUID | None, credential: Credential
    ) -> str:
        challenge = _spelled(challenge_of(credential))
        if not await self._lookups.take_challenge(
            hash_secret(challenge), purpose, user_id, self._clock.now()
        ):
            raise Unauthenticated("the passkey was not asked for, or too long ago: ask again")
        return challenge


class SecondSteps:
    """Brings pending logins to their end. Each method is a door's whole work.

    All raise Unauthenticated, in the same words, for a token that is unknown, too old or used up,
    and for one of the other sort: what sets up a factor does not show one.
    """

    def __init__(
        self,
        transactions: Transactions[GatewayStore],
        lookups: Lookups,
        factors: Factors,
        passkeys: Passkeys,
        accounts: Accounts,
        sessions: Sessions,
        attempts: Attempts,
        clock: Clock,
    ) -> None:
        self._transactions = transactions
        self._lookups = lookups
        self._factors = factors
        self._passkeys = passkeys
        self._accounts = accounts
        self._sessions = sessions
        self._attempts = attempts
        self._clock = clock

    async def by_code(self, token: str, proof: Proof, code: str, client: Client) -> Tokens:
        """Open the session for who shows a code of the app, or a recovery code.

        Raises Unauthenticated, and TooManyRequests if too many codes of the account were wrong.
        """
        pending = await self._attempt(token)
        kind = "totp" if proof is Proof.CODE else "recovery"
        await self._factors.check_code(pending.user_id, kind, code)
        return await self._finish(pending, proof, client)

    async def ask_for_passkey(self, token: str, site: RelyingParty) -> dict[str, Any]:
        """Return what a passkey of the pending login's user proves itself by."""
        pending = await self._look(token, enrols=False)
        return await self._passkeys.ask(pending.user_id, site)

    async def by_passkey(
        self, token: str, site: RelyingParty, credential: Credential, client: Client
    ) -> Tokens:
        """Open the session for whose passkey proves itself."""
        pending = await self._attempt(token)
        await self._passkeys.check(pending.user_id, site, credential)
        return await self._finish(pending, Proof.PASSKEY, client)

    async def log_in_by_passkey(
        self, site: RelyingParty, credential: Credential, tenant_slug: str | None, client: Client
    ) -> Tokens | SecondStep:
        """Let in whose passkey proves itself, and has verified its owner: no password, no second step."""
        user_id = await self._passkeys.check(None, site, credential)
        account = await self._accounts.get(user_id, fresh=True)
        if account is None or not account.memberships:
            raise Unauthenticated("the user may not enter any more")
        membership = (
            account.memberships[0]
            if tenant_slug is None
            else account.membership_called(tenant_slug)
        )
        if membership is None:
            raise Unauthenticated("the user may not enter this tenant")
        outcome = await self._sessions.enter(
            account, membership.tenant_id, (Proof.PASSKEY,), client
        )
        if isinstance(outcome, Tokens):
            await self._attempts.note_success(account.email, client.address)
        return outcome

    async def begin_app(self, token: str) -> AppSetUp:
        """Give an authenticator app its secret. Raises Conflict if there is a factor by now."""
        pending = await self._look(token, enrols=True)
        return await self._factors.begin_app(pending.user_id, only_first=True)

    async def confirm_app(self, token: str, code: str, client: Client) -> Enrolled:
        """Let the app count that has shown a code, and open the session."""
        pending = await self._attempt(token, enrols=True)
        codes = await self._factors.confirm_app(pending.user_id, code, only_first=True)
        return Enrolled(await self._finish(pending, Proof.CODE, client), codes)

    async def begin_passkey(self, token: str, site: RelyingParty) -> dict[str, Any]:
        """Return what an authenticator makes the first passkey from. Raises Conflict."""
        pending = await self._look(token, enrols=True)
        return await self._passkeys.begin(pending.user_id, site, only_first=True)

    async def add_passkey(
        self, token: str, site: RelyingParty, credential: Credential, name: str, client: Client
    ) -> Enrolled:
        """Keep the first passkey, and open the session."""
        pending = await self._attempt(token, enrols=True)
        added = await self._passkeys.add(
            pending.user_id, site, credential, name=name, only_first=True
        )
        return Enrolled(await self._finish(pending, Proof.PASSKEY, client), added.recovery_codes)

    async def _look(self, token: str, *, enrols: bool) -> PendingLogin:
        now = self._clock.now()
        return await self._find(
            token, enrols, lambda store, kept: store.pending_logins.get(kept, now)
        )

    async def _attempt(self, token: str, *, enrols: bool = False) -> PendingLogin:
        """Spend one attempt before it is looked whether it is right: there is no trying in parallel."""
        now = self._clock.now()
        return await self._find(
            token, enrols, lambda store, kept: store.pending_logins.attempt(kept, now)
        )

    async def _find(
        self,
        token: str,
        enrols: bool,
        look: Callable[[GatewayStore, bytes], Awaitable[PendingLogin | None]],
    ) -> PendingLogin:
        token_hash = hash_secret(token)
        tenant_id = await self._lookups.tenant_of_pending_login(token_hash)
        if tenant_id is None:
            raise _refusal()
        async with self._transactions.begin(tenant_id) as store:
            pending = await look(store, token_hash)
        if pending is None or pending.enrols is not enrols:
            raise _refusal()
        return pending

    async def _finish(self, pending: PendingLogin, proof: Proof, client: Client) -> Tokens:
        """Use the pending login up and open its session, if the user may still enter."""
        account = await self._accounts.get(pending.user_id, fresh=True)
        if account is None or account.membership_in(pending.tenant_id) is None:
            raise _refusal()
        async with self._transactions.begin(pending.tenant_id) as store:
            if not await store.pending_logins.take(pending.token_hash):
                raise _refusal()
            tokens = await self._sessions.open(
                store, pending.user_id, (*pending.proofs, proof), client, pending.proved_at
            )
        await self._attempts.note_success(account.email, client.address)
        return tokens


def _purpose(user_id: UUID | None) -> Purpose:
    return Purpose.LOG_IN if user_id is None else Purpose.SECOND_STEP


def _spelled(challenge: bytes) -> str:
    """Return a challenge as browsers write it."""
    return base64.urlsafe_b64encode(challenge).rstrip(b"=").decode()


def _refusal() -> Unauthenticated:
    return Unauthenticated("the login is not known, or no longer: begin again")
