"""Looking up names that tenants chose, without keeping anybody else from looking up theirs.

The system's resolver blocks a thread for as long as a name server is silent, and the loop's own few
threads look up the database, the bus and the mail server too. So tenants' names have threads of
their own, and may wait only so long and in such numbers.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from libs.common.outbound import Address

LookUp = Callable[[str, int], Sequence[Address]]


def ask_system(host: str, port: int) -> Sequence[Address]:
    """Return every address the machine's resolver knows for a name. Raises OSError if none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found]


class TenantNames:
    """Looks up at most `threads` names at once; at most `queue` more wait, none longer than `within`.

    A name that is being looked up is not begun a second time, whoever asks: a silent name server
    costs a thread for each of its names.
    """

    def __init__(
        self,
        look_up: LookUp = ask_system,
        *,
        threads: int = 16,
        queue: int = 64,
        within: timedelta = timedelta(seconds=3),
    ) -> None:
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tenant-names")
        self._limit = threads + queue
        self._within_s = within.total_seconds()
        self._under_way: dict[tuple[str, int], asyncio.Future[Sequence[Address]]] = {}

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Return the addresses of a name. Raises OSError if there is none, or none in time."""
        key = (host, port)
        answer = self._under_way.get(key)
        if answer is None:
            if len(self._under_way) >= self._limit:
                raise OSError("too many names are being looked up")
            loop = asyncio.get_running_loop()
            answer = loop.run_in_executor(self._threads, self._look_up, host, port)
            self._under_way[key] = answer
            answer.add_done_callback(lambda done: self._forget(key, done))
        # Shielded: the thread goes on when nobody waits any more, and others may wait for the same.
        return await asyncio.wait_for(asyncio.shield(answer), self._within_s)

    def close(self) -> None:
        """Give the threads up; what waits is abandoned."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, key: tuple[str, int], done: "asyncio.Future[Sequence[Address]]") -> None:
        del self._under_way[key]
        if not done.cancelled():
            done.exception()  # looked at, since all who asked may have given up
