"""Hashing of passwords with argon2id, slow on purpose, beside the event loop."""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from libs.common.errors import Unavailable
from services.tenancy.domain.password import normalise_password

T = TypeVar("T")

# OWASP's first choice for argon2id: 19 MiB, two passes, one lane.
MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1


class Passwords:
    """Hashes and verifies at most `workers` passwords at once; at most `queue` more wait.

    Each takes some 30 ms of a core and 19 MiB while it runs.
    """

    def __init__(self, workers: int, queue: int = 64) -> None:
        self._hasher = PasswordHash((Argon2Hasher(PASSES, MEMORY_KIB, LANES),))
        # Threads of its own: a request that is cancelled gives no place free before its hash is done.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="argon2")
        self._limit = workers + queue
        self._pending = 0
        # Nobody's password: what is verified for those who have none, so that it takes as long.
        self._nobodys = self._hasher.hash(secrets.token_urlsafe(32))

    async def hash(self, password: str) -> str:
        """Return what is kept of a password. Raises Unavailable if too many wait."""
        return await self._run(lambda: self._hasher.hash(normalise_password(password)))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether it is the password; of None, nobody's, after the same time.

        Raises Unavailable if too many wait.
        """
        against = self._nobodys if password_hash is None else password_hash
        matches = await self._run(
            lambda: self._hasher.verify(normalise_password(password), against)
        )
        return matches and password_hash is not None

    def close(self) -> None:
        """Give the threads up; what waits is abandoned."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._pending >= self._limit:
            raise Unavailable("too many log in at once", retry_after_s=1)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._pending -= 1
