"""What the gateway does again and again."""

from datetime import timedelta

from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.inbox import trim_inbox
from services.gateway.store.lookups import Lookups
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.keyring import Keyring
from services.gateway.usecases.origins import Origins
from services.gateway.usecases.rate_limits import RateLimits

OVERLAP = timedelta(seconds=30)
"""Replicas' clocks differ, and a revocation is seen only once its transaction commits."""
ENDED_KEPT = timedelta(days=7)


async def catch_up(
    lookups: Lookups, callers: Callers, clock: Clock, access_lifetime: timedelta
) -> None:
    """Learn of revocations whose event this replica missed: before it started, or cut off."""
    now = clock.now()
    for session_id in await lookups.revoked_since(now - access_lifetime - OVERLAP):
        callers.revoke(session_id, now + access_lifetime)
    callers.forget_expired()


class RunTimeSettings:
    """What was set at run time, looked up when it changed."""

    def __init__(self, lookups: Lookups, limits: RateLimits, origins: Origins) -> None:
        self._lookups = lookups
        self._limits = limits
        self._origins = origins
        self._seen: tuple[object, ...] | None = None

    async def look(self) -> None:
        """Let what is set now hold in this process."""
        seen = await self._lookups.fingerprint()
        if seen == self._seen:
            return
        self._limits.set(await self._lookups.rate_limit_policies())
        self._origins.set(await self._lookups.cors_origins())
        self._seen = seen


async def keep_house(
    keyring: Keyring, lookups: Lookups, engine: Database, clock: Clock, inbox_kept: timedelta
) -> None:
    """Read the keys anew, turn them over when due, and remove what has expired."""
    await keyring.keep()
    now = clock.now()
    await lookups.forget(sessions_before=now - ENDED_KEPT, others_before=now)
    await trim_inbox(engine, "gateway", inbox_kept)
