"""Counting requests against limits: in Redis if there is one, so that replicas count together."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache

import structlog
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.redis.bridge import RedisBridge
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript

from services.gateway.domain.lease import LEASED_FROM, size_of_next
from services.gateway.domain.limit import Limit, Standing

log = structlog.get_logger(__name__)

REDIS_WITHIN_S = 0.25
REDIS_PAUSE_S = 5.0
REDIS_CONNECTIONS = 50
"""Of one replica. Whoever finds all in use waits, which takes less time than another connection."""
STRICTER = 4
"""While Redis is away each replica counts for itself, and allows this fraction."""
SWEEP_S = 30.0
LEASE_S = 5.0
"""How long requests that were counted ahead may be used; what is left of them lapses."""
LEASES_IN_WINDOW = 4
"""In a short window they lapse sooner: within a quarter of it."""

# The library's own scripts, which it runs one after the other: here they cost one round trip.
_HIT_AND_LOOK = f"""
local function hit(KEYS, ARGV)
{RedisBridge.SCRIPT_ACQUIRE_MOVING_WINDOW.decode()}
end
local function look(KEYS, ARGV)
{RedisBridge.SCRIPT_MOVING_WINDOW.decode()}
end
local now, limit, window, cost = unpack(ARGV)
local is_allowed = hit(KEYS, {{now, limit, window, cost}})
local found = look(KEYS, {{tonumber(now) - tonumber(window), limit}}) or {{now, 0}}
return {{is_allowed and 1 or 0, found[1], found[2]}}
"""


@dataclass(slots=True)
class _Lease:
    """Requests of one caller that are counted in Redis already, to be used here."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while Redis is asked for more: whoever comes meanwhile waits for what it says."""
    size: int = 0
    left: int = 0
    taken_at: float = 0.0
    until: float = 0.0
    remaining: int = 0
    reset_at: float = 0.0
    refused_until: float = 0.0
    """Nothing comes back before: Redis need not be asked."""


class _Redis(MovingWindowRateLimiter):
    """Counts in Redis; what a hit leaves is said with it."""

    def __init__(self, url: str, pool: BlockingConnectionPool) -> None:
        storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix="gateway:limits",
            connection_pool=pool,  # type: ignore[arg-type]  # documented, and left out of the type
        )
        super().__init__(storage)
        self._prefixed = storage.bridge.prefixed_key
        self._hit_and_look = AsyncScript(Redis(connection_pool=pool), _HIT_AND_LOOK)

    async def hit_and_look(self, limit: Limit, key: str, cost: int) -> Standing:
        """Count a hit, as `hit` does, and say where the caller stands, as `get_window_stats` does."""
        item, now = _item(limit.requests, limit.window_s), time.time()
        name = self._prefixed(item.key_for(limit.bucket, key))
        is_allowed, oldest, counted = await self._hit_and_look(
            [name], [repr(now), limit.requests, limit.window_s, cost]
        )
        reset_s = float(oldest) + limit.window_s - now
        return Standing(limit, bool(is_allowed), limit.requests - counted, reset_s)


_Work = Callable[[MovingWindowRateLimiter, Limit, str, int], Awaitable[Standing]]


class Limiter:
    """Counts requests in windows that move.

    A limit below `LEASED_FROM` is counted one by one and exactly. Of a larger one each replica counts a
    few ahead, at most half a percent, and gives them out by itself: N replicas may together allow N
    half percents too much in a window, and Redis is asked seldom.
    """

    def __init__(self, redis_url: str = "") -> None:
        self._redis_url = redis_url
        self._memory_storage = MemoryStorage()
        self._memory = MovingWindowRateLimiter(self._memory_storage)
        self._redis: _Redis | None = None
        self._pool: BlockingConnectionPool | None = None
        self._redis_paused_until = 0.0
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to count."""
        self._sweeper = asyncio.create_task(self._sweep(), name="gateway.limits")
        # The storage's own sweep runs after every hit, and hops to a thread for every key.
        self._memory_storage.timer = self._sweeper
        if self._redis_url:
            self._pool = BlockingConnectionPool.from_url(
                self._redis_url,
                max_connections=REDIS_CONNECTIONS,
                timeout=REDIS_WITHIN_S,
                # `_ask` waits no longer for all of it; here it would cost a task for each write.
                socket_timeout=None,
                socket_connect_timeout=REDIS_WITHIN_S,
                # What is sent again may have been counted already.
                retry=Retry(NoBackoff(), 0),
            )
            self._redis = _Redis(self._redis_url, self._pool)

    async def close(self) -> None:
        """Count no more."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._pool is not None:
            await self._pool.aclose()

    async def hit(self, limit: Limit, key: str) -> Standing:
        """Count one request; the answer says whether it is still within the limit. Never fails."""
        if self._redis is not None and limit.requests >= LEASED_FROM:
            return await self._hit_lease(limit, key)
        return await self._ask(self._count, limit, key, limit.cost)

    async def standing(self, limit: Limit, key: str) -> Standing:
        """Say whether one more request would be within the limit; it is not counted. Never fails."""
        return await self._ask(self._look, limit, key, limit.cost)

    async def _hit_lease(self, limit: Limit, key: str) -> Standing:
        """Use what was counted ahead, or count more ahead."""
        name = limit.bucket, key
        lease = self._leases.get(name)
        if lease is None:
            lease = self._leases[name] = _Lease()
        standing = self._use(lease, limit)
        if standing is not None:
            return standing
        async with lease.turn:
            standing = self._use(lease, limit)
            if standing is not None:
                return standing
            now = time.monotonic()
            used_s = now - lease.taken_at if lease.left < limit.cost else None
            lease_s = min(LEASE_S, limit.window_s / LEASES_IN_WINDOW)
            size = size_of_next(limit, lease.size, used_s, lease_s=lease_s)
            counted = await self._ask(self._count, limit, key, size)
            if not counted.is_allowed and size > limit.cost:
                # Near the edge there is less to be had than that.
                size = max(limit.cost, min(size, counted.remaining))
                counted = await self._ask(self._count, limit, key, size)
            if not counted.is_allowed:
                lease.left = lease.size = 0
                # What this process counts while Redis is away it asks itself each time.
                if counted.limit is limit:
                    lease.refused_until = now + max(0.0, counted.reset_s)
                return counted
            lease.size, lease.left = size, size - limit.cost
            lease.taken_at, lease.until = now, now + lease_s
            lease.remaining, lease.reset_at = counted.remaining, now + counted.reset_s
            return Standing(limit, True, lease.remaining + lease.left, counted.reset_s)

    def _use(self, lease: _Lease, limit: Limit) -> Standing | None:
        """Return what can be said without asking Redis; None if it must be asked."""
        now = time.monotonic()
        if now < lease.refused_until:
            return Standing(limit, False, 0, lease.refused_until - now)
        if now >= lease.until or lease.left < limit.cost:
            return None
        lease.left -= limit.cost
        return Standing(limit, True, lease.remaining + lease.left, lease.reset_at - now)

    async def _ask(self, work: _Work, limit: Limit, key: str, cost: int) -> Standing:
        if self._redis is not None and time.monotonic() >= self._redis_paused_until:
            try:
                async with asyncio.timeout(REDIS_WITHIN_S):
                    return await work(self._redis, limit, key, cost)
            except Exception as error:  # noqa: BLE001 - whatever ails Redis must not become a 500
                now = time.monotonic()
                # All that were asking at the moment fail; it is said once.
                if now >= self._redis_paused_until:
                    log.warning("limits are counted in this process alone", cause=repr(error))
                self._redis_paused_until = now + REDIS_PAUSE_S
        if self._redis is not None:
            limit = limit.divided(STRICTER)
            cost = min(cost, limit.requests)
        return await work(self._memory, limit, key, cost)

    async def _count(
        self, limiter: MovingWindowRateLimiter, limit: Limit, key: str, cost: int
    ) -> Standing:
        if isinstance(limiter, _Redis):
            return await limiter.hit_and_look(limit, key, cost)
        item = _item(limit.requests, limit.window_s)
        is_allowed = await limiter.hit(item, limit.bucket, key, cost=cost)
        stats = await limiter.get_window_stats(item, limit.bucket, key)
        return Standing(limit, is_allowed, stats.remaining, stats.reset_time - time.time())

    async def _look(
        self, limiter: MovingWindowRateLimiter, limit: Limit, key: str, cost: int
    ) -> Standing:
        item = _item(limit.requests, limit.window_s)
        is_allowed = await limiter.test(item, limit.bucket, key, cost=cost)
        stats = await limiter.get_window_stats(item, limit.bucket, key)
        return Standing(limit, is_allowed, stats.remaining, stats.reset_time - time.time())

    async def _sweep(self) -> None:
        storage = self._memory_storage
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.time()
            for key in [
                k for k, hits in storage.events.items() if not hits or hits[0].expiry <= now
            ]:
                storage.events.pop(key, None)
                storage.locks.pop(key, None)
            for name in [n for n, lease in self._leases.items() if self._is_idle(lease)]:
                del self._leases[name]

    def _is_idle(self, lease: _Lease) -> bool:
        return not lease.turn.locked() and max(lease.until, lease.refused_until) < time.monotonic()


@lru_cache(maxsize=1024)
def _item(requests: int, window_s: int) -> RateLimitItemPerSecond:
    return RateLimitItemPerSecond(requests, window_s)
