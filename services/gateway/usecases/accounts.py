"""What users may do, remembered for a while."""

import time
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import structlog

from libs.common.errors import Unavailable
from services.gateway.domain.account import Account

log = structlog.get_logger(__name__)

FRESH_S = 60.0
"""How long an account is believed. Changes are told by event, at once; this is the net below."""
STALE_S = 900.0
"""How long it is believed while tenancy is away: those at work go on, for as long as their token."""
REMEMBERED = 50_000


class AccountSource(Protocol):
    """Knows the users."""

    async def account(self, user_id: UUID) -> Account | None:
        """Return a user who may still log in; None for anyone else. Raises Unavailable."""
        ...


class Accounts:
    """The accounts this process has asked for."""

    def __init__(
        self, source: AccountSource, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._monotonic = monotonic
        self._known: dict[UUID, tuple[Account, float]] = {}
        self._generation = 0
        """Moves with each `forget`: an answer that was under way then may be the old one."""

    async def get(self, user_id: UUID, *, fresh: bool = False) -> Account | None:
        """Return a user who may log in; None for anyone else.

        `fresh` asks again. Raises Unavailable if tenancy must be asked and cannot be.
        """
        known = self._known.get(user_id)
        age_s = self._monotonic() - known[1] if known else STALE_S
        if known is not None and not fresh and age_s < FRESH_S:
            return known[0]
        generation = self._generation
        try:
            account = await self._source.account(user_id)
        except Unavailable:
            if known is None or fresh or age_s >= STALE_S or generation != self._generation:
                raise
            log.warning("tenancy is away; an earlier answer is believed", age_s=round(age_s))
            return known[0]
        if generation != self._generation:
            # Something changed while we asked.
            return await self.get(user_id, fresh=True)
        if account is None:
            self._known.pop(user_id, None)
            return None
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[user_id] = (account, self._monotonic())
        return account

    def forget(self, user_id: UUID) -> None:
        """Believe nothing of a user any more."""
        self._generation += 1
        self._known.pop(user_id, None)

    def forget_tenant(self, tenant_id: UUID) -> None:
        """Believe nothing of a tenant's users any more."""
        self._generation += 1
        for user_id, (account, _) in list(self._known.items()):
            if account.membership_in(tenant_id) is not None:
                del self._known[user_id]

    def forget_all(self) -> None:
        """Believe nothing of anybody any more."""
        self._generation += 1
        self._known.clear()
