"""The second factors of users: set up, used, and taken away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid4

import msgspec
import structlog

from libs.common.auth.principal import Kind as PrincipalKind
from libs.common.db.acting import actor_now
from libs.common.db.transactions import Transactions
from libs.common.errors import Conflict, NotFound, TooManyRequests, Unauthenticated, Unavailable
from libs.common.events.audit import AuditEntry, AuditRecorded
from libs.common.events.tenancy import UserFactorsChanged
from libs.common.sealing import Sealing, Unsealable
from services.tenancy.domain import passkey as webauthn
from services.tenancy.domain.account import Account
from services.tenancy.domain.mail import Purpose
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.passkey import Ceremony, Credential, Options
from services.tenancy.domain.second_factor import (
    Change,
    Factor,
    OneTimeCodes,
    Passkey,
    app_address,
    hash_recovery_code,
    is_copied,
    listed,
    matching_step,
    new_recovery_codes,
    new_secret,
    wait_after,
)
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore

log = structlog.get_logger(__name__)

PRODUCT = "INSA IIoT"
"""What authenticators show beside the user's address."""
MOST_PASSKEYS = 20


@dataclass(frozen=True, slots=True)
class AppSetUp:
    """What an authenticator app takes over; shown once."""

    secret: str = field(repr=False)
    address: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Factors:
    """A user's factors, and how many recovery codes they have left."""

    factors: list[Factor]
    recovery_codes_left: int


class SecondFactors:
    """Sets factors up and looks at what is shown. Each method is a door's whole work.

    `only_first`: whether the factor must be the user's first. So it is for somebody who has shown
    the password and no more: they must not add one to those that the user has.
    """

    def __init__(
        self, transactions: Transactions[TenancyStore], accounts: Accounts, sealing: Sealing
    ) -> None:
        self._transactions = transactions
        self._accounts = accounts
        self._sealing = sealing

    async def of(self, user_id: UUID) -> Factors:
        """Return what a user has. Raises NotFound."""
        async with self._begin(user_id) as (_, store):
            return Factors(
                listed(await store.factors.codes(user_id), await store.factors.passkeys(user_id)),
                await store.factors.recovery_codes_left(user_id),
            )

    async def begin_codes(self, user_id: UUID, *, only_first: bool, now: datetime) -> AppSetUp:
        """Give an authenticator app a secret, which counts once a code of it was shown.

        Raises Conflict if the user has one that counts (or, if it must be the first, anything that
        does).
        """
        secret = new_secret()
        sealed = self._sealing.seal(secret.encode(), _about(user_id))
        async with self._begin(user_id) as (account, store):
            await _check_room(store, user_id, only_first=only_first, for_codes=True)
            await store.factors.keep_codes(OneTimeCodes(uuid4(), user_id, sealed, now))
        return AppSetUp(secret, app_address(secret, account=account.email, issuer=PRODUCT))

    async def confirm_codes(
        self, user_id: UUID, code: str, *, only_first: bool, now: datetime
    ) -> tuple[str, ...]:
        """Let an authenticator app count, which has shown a code; return new recovery codes.

        Raises Unauthenticated for a wrong code, Conflict if nothing waits to be confirmed,
        TooManyRequests if too many were wrong.
        """
        async with self._begin(user_id) as (account, store):
            await _check_room(store, user_id, only_first=only_first, for_codes=True)
            codes = await store.factors.codes(user_id)
            if codes is None:
                raise Conflict("there is no authenticator app to confirm: begin with one")
            is_right = await self._look_at_code(store, codes, code, now, confirms=True)
            if is_right:
                recovery_codes = await _renew_recovery_codes(store, user_id)
                await _say(store, account, Change.TOTP_ADDED, now)
        if not is_right:
            raise _wrong_code()
        return recovery_codes

    async def check_code(self, user_id: UUID, code: str, *, now: datetime) -> None:
        """Return if it is a code of the user's app that was not used yet.

        Raises Unauthenticated, or TooManyRequests if too many were wrong.
        """
        async with self._begin(user_id) as (_, store):
            codes = await store.factors.codes(user_id)
            is_right = codes is not None and codes.is_active
            if codes is not None and is_right:
                is_right = await self._look_at_code(store, codes, code, now)
        if not is_right:
            raise _wrong_code()

    async def check_recovery_code(self, user_id: UUID, code: str, *, now: datetime) -> None:
        """Use one of the user's recovery codes up. Raises Unauthenticated if it is none."""
        async with self._begin(user_id) as (account, store):
            is_right = await store.factors.take_recovery_code(user_id, hash_recovery_code(code))
            if is_right:
                await _say(store, account, Change.RECOVERY_CODE_USED, now)
        if not is_right:
            raise _wrong_code()

    async def renew_recovery_codes(self, user_id: UUID, *, now: datetime) -> tuple[str, ...]:
        """Return new recovery codes; the old ones are void. Raises Conflict without a factor."""
        async with self._begin(user_id) as (account, store):
            if not await _has_factor(store, user_id):
                raise Conflict("there is no second factor that recovery codes could stand in for")
            await _say(store, account, Change.RECOVERY_CODES_RENEWED, now)
            return await _renew_recovery_codes(store, user_id)

    async def begin_passkey(
        self, user_id: UUID, ceremony: Ceremony, *, only_first: bool
    ) -> Options:
        """Return what an authenticator makes a passkey of the user from. Raises Conflict."""
        async with self._begin(user_id) as (account, store):
            await _check_room(store, user_id, only_first=only_first)
            present = await store.factors.passkeys(user_id)
        return webauthn.creation_options(
            ceremony, rp_name=PRODUCT, user_id=user_id, email=account.email, present=present
        )

    async def add_passkey(
        self,
        user_id: UUID,
        credential: Credential,
        ceremony: Ceremony,
        *,
        name: str,
        only_first: bool,
        now: datetime,
    ) -> tuple[Factor, tuple[str, ...]]:
        """Keep the passkey that an authenticator made; return it, and recovery codes with the first.

        Raises Unauthenticated if its answer is not valid, Conflict if it is somebody's already.
        """
        made = webauthn.check_made(credential, ceremony)
        if await self._accounts.user_of_passkey(made.credential_id) is not None:
            raise Conflict("this passkey is registered already")
        added = Passkey(
            uuid4(),
            user_id,
            made.credential_id,
            made.public_key,
            made.sign_count,
            made.transports,
            name,
            now,
        )
        recovery_codes: tuple[str, ...] = ()
        async with self._begin(user_id) as (account, store):
            await _check_room(store, user_id, only_first=only_first)
            if not await _has_factor(store, user_id):
                recovery_codes = await _renew_recovery_codes(store, user_id)
            await store.factors.add_passkey(added)
            await _say(store, account, Change.PASSKEY_ADDED, now)
        return listed(None, [added])[0], recovery_codes

    async def ask_for_passkey(self, user_id: UUID | None, ceremony: Ceremony) -> Options:
        """Return what a passkey proves itself by: one of the user's, or (None) anybody's."""
        if user_id is None:
            return webauthn.request_options(ceremony, passkeys=None)
        async with self._begin(user_id) as (_, store):
            passkeys = await store.factors.passkeys(user_id)
        return webauthn.request_options(ceremony, passkeys=passkeys)

    async def check_passkey(
        self, user_id: UUID | None, credential: Credential, ceremony: Ceremony, *, now: datetime
    ) -> UUID:
        """Return whose passkey has proved itself; it must be the user's, if one is given.

        If none is, the passkey is all there is, and must have verified its owner.
        Raises Unauthenticated in the same words whatever was wrong. A passkey whose counter does
        not move on exists twice: it is refused, and that is said.
        """
        credential_id = webauthn.credential_id_of(credential)
        owner = await self._accounts.user_of_passkey(credential_id)
        if owner is None or user_id not in (None, owner):
            raise _unknown_passkey()
        async with self._begin(owner) as (account, store):
            kept = await store.factors.passkeys(owner)
            passkey = next((key for key in kept if key.credential_id == credential_id), None)
            if passkey is None:  # removed just now
                raise _unknown_passkey()
            count = webauthn.check_used(credential, ceremony, passkey, knows_owner=user_id is None)
            is_copy = is_copied(passkey.sign_count, count)
            if is_copy:
                await _say(store, account, Change.PASSKEY_CLONED, now)
            else:
                await store.factors.note_passkey(passkey.id, sign_count=count, at=now)
        if is_copy:
            log.warning("a passkey's counter did not move on", user_id=owner, passkey_id=passkey.id)
            raise _unknown_passkey()
        return owner

    async def rename_passkey(self, user_id: UUID, passkey_id: UUID, name: str) -> Factor:
        """Give one of the user's passkeys another name. Raises NotFound."""
        async with self._begin(user_id) as (_, store):
            await store.factors.rename_passkey(user_id, passkey_id, name)
            passkeys = await store.factors.passkeys(user_id)
        return next(factor for factor in listed(None, passkeys) if factor.id == passkey_id)

    async def remove(self, user_id: UUID, factor_id: UUID, *, now: datetime) -> None:
        """Take one of the user's factors away; with the last, the recovery codes. Raises NotFound."""
        async with self._begin(user_id) as (account, store):
            await store.factors.remove(user_id, factor_id)
            if not await _has_factor(store, user_id):
                await store.factors.remove_all(user_id)
            await _say(store, account, Change.REMOVED, now)

    async def reset(self, user_id: UUID, *, now: datetime) -> None:
        """Take all factors of a user away who has lost them. Raises NotFound if there is no such user."""
        async with self._begin(user_id) as (account, store):
            await store.factors.remove_all(user_id)
            await _say(store, account, Change.RESET, now)

    @asynccontextmanager
    async def _begin(self, user_id: UUID) -> AsyncIterator[tuple[Account, TenancyStore]]:
        """Open a transaction that reaches the user, by way of the tenants they are in."""
        account = await self._accounts.get(user_id)
        if not account.memberships:
            raise NotFound(f"no user {user_id}")
        # What is said by mail is said in the name of the first: of one that they may enter.
        places = sorted(account.memberships, key=lambda m: not m.is_open)
        async with self._transactions.begin(*(m.tenant_id for m in places)) as store:
            await store.factors.lock(user_id)
            yield account, store

    async def _look_at_code(
        self,
        store: TenancyStore,
        codes: OneTimeCodes,
        code: str,
        now: datetime,
        *,
        confirms: bool = False,
    ) -> bool:
        """Return whether the code is right, and note which it was. Raises TooManyRequests."""
        wait = wait_after(codes.failures, codes.failed_at, now)
        if wait:
            raise TooManyRequests(
                "too many codes were wrong; a passkey or a recovery code is taken meanwhile",
                retry_after_s=wait.total_seconds(),
            )
        try:
            secret = self._sealing.open(codes.sealed_secret, _about(codes.user_id)).decode()
        except Unsealable as error:
            raise Unavailable("one-time codes cannot be checked by this installation") from error
        step = matching_step(secret, code, after=codes.last_step, now=now)
        await store.factors.note_code(codes.user_id, step=step, at=now, confirms=confirms)
        return step is not None


async def forget_unproved(store: TenancyStore, account: Account, *, at: datetime) -> None:
    """Take away what somebody set up before it was proved that the user reads the address's mail."""
    await store.factors.lock(account.user_id)
    is_set_up = await _has_factor(store, account.user_id)
    await store.factors.remove_all(account.user_id)
    if is_set_up:
        await _say(store, account, Change.RESET, at)


async def _has_factor(store: TenancyStore, user_id: UUID) -> bool:
    codes = await store.factors.codes(user_id)
    return (codes is not None and codes.is_active) or bool(await store.factors.passkeys(user_id))


async def _check_room(
    store: TenancyStore, user_id: UUID, *, only_first: bool, for_codes: bool = False
) -> None:
    """Raise Conflict unless the user may have one more factor."""
    codes, passkeys = await store.factors.codes(user_id), await store.factors.passkeys(user_id)
    has_codes = codes is not None and codes.is_active
    if only_first and (has_codes or passkeys):
        raise Conflict("there is a second factor already: log in with it")
    if for_codes and has_codes:
        raise Conflict("there is an authenticator app already: remove it first")
    if len(passkeys) >= MOST_PASSKEYS:
        raise Conflict(f"there are {MOST_PASSKEYS} passkeys already: remove one first")


async def _renew_recovery_codes(store: TenancyStore, user_id: UUID) -> tuple[str, ...]:
    codes = new_recovery_codes()
    await store.factors.keep_recovery_codes(user_id, [hash_recovery_code(code) for code in codes])
    return codes


async def _say(store: TenancyStore, account: Account, change: Change, at: datetime) -> None:
    """Say what happened to the user, by mail, and to each of their tenants."""
    await store.mails.post(Purpose.FACTORS_CHANGED, account.email, about=account.user_id, at=at)
    actor = actor_now()
    if change is not Change.RESET:
        # The gateway asks, for a user who has proved who they are.
        actor = msgspec.structs.replace(actor, kind=PrincipalKind.USER, id=account.user_id)
    entry = AuditEntry(
        action=f"second_factor.{change}",
        resource="user",
        resource_id=str(account.user_id),
        label=account.email,
        outcome="denied" if change is Change.PASSKEY_CLONED else "ok",
    )
    for membership in account.memberships:
        if membership.status is MemberStatus.INVITED:
            continue  # nobody there has heard of them
        store.emit(
            UserFactorsChanged(
                tenant_id=membership.tenant_id, at=at, user_id=account.user_id, change=change
            )
        )
        store.emit(
            AuditRecorded(
                tenant_id=membership.tenant_id,
                at=at,
                service="tenancy",
                actor=actor,
                entries=[entry],
            )
        )


def _about(user_id: UUID) -> bytes:
    return b"one-time codes " + user_id.bytes


def _wrong_code() -> Unauthenticated:
    return Unauthenticated("the code is not valid, or no longer")


def _unknown_passkey() -> Unauthenticated:
    return Unauthenticated("the passkey is not one of yours, or its answer is not valid")
