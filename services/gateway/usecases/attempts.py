"""Attempts to log in: guessing is stopped, and nobody can lock somebody else out by it.

From one address to one account a few attempts a minute. Beyond that, failures are counted: of an
address, over all accounts (one password tried on many), and of an account, over all addresses (many
machines try one account). Of the last two only strangers' count, and only strangers are stopped by
them: at an address from which the account was logged in to lately its owner has a budget apart.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from libs.common.email import normalise_email
from libs.common.errors import Invalid, TooManyRequests, Unauthenticated, Unavailable
from services.gateway.domain.limit import Limit, Standing
from services.gateway.domain.secret import hash_secret

log = structlog.get_logger(__name__)


class Counter(Protocol):
    """Counts against limits, together with the other replicas."""

    async def hit(self, limit: Limit, key: str) -> Standing:
        """Count one; the answer says whether it is still within the limit."""
        ...

    async def standing(self, limit: Limit, key: str) -> Standing:
        """Say whether one more would be within the limit, and count nothing."""
        ...


class Familiarity(Protocol):
    """Knows from where an account was logged in to lately."""

    async def is_familiar(self, email: str, origin: str) -> bool:
        """Whether the account was logged in to from there. Raises Unavailable."""
        ...

    async def note_familiar(self, email: str, origin: str) -> None:
        """Note that the account was logged in to from there. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """How much may be tried."""

    attempts: Limit
    """By one address on one account."""
    failures_of_address: Limit
    """By one address, on all accounts that do not know it."""
    failures_of_account: Limit
    """On one account: by all addresses it does not know together, by each that it knows alone."""
    requests_of_address: Limit
    """To register, or for a forgotten password, by one address."""
    mails_to_address: Limit
    """To one mail address, whoever asks: beyond, none is sent, and nobody is told."""


class Attempts:
    """Counts attempts. Accounts are named by hashes: addresses of people do not belong into Redis."""

    def __init__(self, counter: Counter, familiarity: Familiarity, limits: AttemptLimits) -> None:
        self._counter = counter
        self._familiarity = familiarity
        self._limits = limits

    @asynccontextmanager
    async def attempt(self, account: str, origin: str) -> AsyncIterator[Standing]:
        """Let one attempt at an account be made within; Unauthenticated says that it failed.

        `account` is its address, in any spelling. Raises TooManyRequests before, if it may not be
        made; Unavailable if it cannot be known.
        """
        email = known_as(account)
        name = _hashed(email)
        here = f"{origin}:{name}"
        standing = await self._counter.hit(self._limits.attempts, here)
        if not standing.is_allowed:
            raise _too_many(standing)
        is_familiar = await self._familiarity.is_familiar(email, origin)
        counted = [(self._limits.failures_of_account, here if is_familiar else name)]
        if not is_familiar:
            counted.append((self._limits.failures_of_address, origin))
        for limit, key in counted:
            before = await self._counter.standing(limit, key)
            if not before.is_allowed:
                raise _too_many(before)
        try:
            yield standing
        except Unauthenticated:
            for limit, key in counted:
                await self._counter.hit(limit, key)
            raise

    async def note_success(self, account: str, origin: str) -> None:
        """Note that the account's owner was here: by all that the login takes, not by a password alone."""
        try:
            await self._familiarity.note_familiar(known_as(account), origin)
        except Unavailable:
            log.warning("where somebody logged in could not be noted")

    async def request(self, account: str, origin: str) -> bool:
        """Count a request that leads to mail; return whether it is to be sent.

        Raises TooManyRequests if the address asks too much. That mail goes to somebody too often is
        not told: nobody can find out, or keep the owner from asking, who has got some by then.
        """
        standing = await self._counter.hit(self._limits.requests_of_address, origin)
        if not standing.is_allowed:
            raise _too_many(standing)
        return (
            await self._counter.hit(self._limits.mails_to_address, _hashed(known_as(account)))
        ).is_allowed


def known_as(account: str) -> str:
    """Return the spelling by which tenancy looks an account up; what is no address has none."""
    try:
        return normalise_email(account)
    except Invalid:
        return account


def _hashed(account: str) -> str:
    return hash_secret(account).hex()[:32]


def _too_many(standing: Standing) -> TooManyRequests:
    return TooManyRequests(
        "too many attempts to log in; try again later", retry_after_s=standing.reset_s
    )
