"""Counting requests against limits: in Redis if there is one, so that replicas count together."""

import asyncio
import time

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import ConnectionPool

from services.gateway.domain.limit import Limit, Standing

log = structlog.get_logger(__name__)

REDIS_WITHIN_S = 0.25
REDIS_PAUSE_S = 5.0
STRICTER = 4
"""While Redis is away each replica counts for itself, and allows this fraction."""
SWEEP_S = 30.0


class Limiter:
    """Counts requests in moving windows of a minute."""

    def __init__(self, redis_url: str = "") -> None:
        self._redis_url = redis_url
        self._memory_storage = MemoryStorage()
        self._memory = MovingWindowRateLimiter(self._memory_storage)
        self._redis: MovingWindowRateLimiter | None = None
        self._pool: ConnectionPool | None = None
        self._redis_paused_until = 0.0
        self._items: dict[int, RateLimitItemPerMinute] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to count."""
        self._sweeper = asyncio.create_task(self._sweep(), name="gateway.limits")
        # The storage's own sweep runs after every hit, and hops to a thread for every key.
        self._memory_storage.timer = self._sweeper
        if self._redis_url:
            self._pool = ConnectionPool.from_url(
                self._redis_url,
                socket_timeout=REDIS_WITHIN_S,
                socket_connect_timeout=REDIS_WITHIN_S,
            )
            self._redis = MovingWindowRateLimiter(
                RedisStorage(
                    f"async+{self._redis_url}",
                    implementation="redispy",
                    key_prefix="gateway:limits",
                    connection_pool=self._pool,  # type: ignore[arg-type]  # documented, and left out of the type
                )
            )

    async def close(self) -> None:
        """Count no more."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._pool is not None:
            await self._pool.aclose()

    async def hit(self, limit: Limit, key: str) -> Standing:
        """Count one request; the answer says whether it is still within the limit. Never fails."""
        if self._redis is not None and time.monotonic() >= self._redis_paused_until:
            try:
                async with asyncio.timeout(REDIS_WITHIN_S):
                    return await self._hit(self._redis, limit, key)
            except Exception as error:  # noqa: BLE001 - whatever ails Redis must not become a 500
                self._redis_paused_until = time.monotonic() + REDIS_PAUSE_S
                log.warning("limits are counted in this process alone", cause=repr(error))
        if self._redis is not None:
            limit = Limit(limit.name, max(1, limit.per_minute // STRICTER))
        return await self._hit(self._memory, limit, key)

    async def _hit(self, limiter: MovingWindowRateLimiter, limit: Limit, key: str) -> Standing:
        item = self._items.get(limit.per_minute)
        if item is None:
            item = self._items[limit.per_minute] = RateLimitItemPerMinute(limit.per_minute)
        is_allowed = await limiter.hit(item, limit.name, key)
        stats = await limiter.get_window_stats(item, limit.name, key)
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
