"""RabbitMQ's management API, as far as devices concern it: cutting their connections, and their queues."""

from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx2
import msgspec

from libs.common.errors import Unavailable

TIMEOUT_S = 5.0
PAGE = 500
_UNREADABLE = "the broker's management API answered what cannot be read"


class _Named(msgspec.Struct):
    name: str


class _Queues(msgspec.Struct):
    items: list[_Named]
    page_count: int


_read_queues = msgspec.json.Decoder(_Queues).decode
_read_connections = msgspec.json.Decoder(list[_Named]).decode


class Management:
    """One broker's API. `url` is http://user:password@host:15672; the user needs the tag administrator."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self._http = httpx2.AsyncClient(
            base_url=f"{parts.scheme}://{host}{parts.path.rstrip('/')}/api/",
            auth=(unquote(parts.username or ""), unquote(parts.password or "")),
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    async def close(self) -> None:
        """End the API's own connections."""
        await self._http.aclose()

    async def close_connections_of(self, user: str, reason: str) -> None:
        """Close all connections of a user. Raises Unavailable."""
        await self._ask(
            "DELETE",
            f"connections/username/{quote(user, safe='')}",
            headers={"X-Reason": reason.encode("ascii", "replace").decode()[:200]},
        )

    async def connections_of(self, user: str) -> int:
        """Return how many connections a user has. Raises Unavailable."""
        answer = await self._ask(
            "GET", f"connections/username/{quote(user, safe='')}", params={"columns": "name"}
        )
        try:
            return len(_read_connections(answer.content))
        except msgspec.MsgspecError as error:
            raise Unavailable(_UNREADABLE) from error

    async def queues(self, vhost: str, prefix: str, page: int) -> tuple[list[str], int]:
        """Return the names of a virtual host's queues that begin so: those on a page, from 1 on, and
        how many pages there are. Raises Unavailable.
        """
        answer = await self._ask(
            "GET",
            f"queues/{quote(vhost, safe='')}",
            params={
                "page": page,
                "page_size": PAGE,
                "name": f"^{prefix}",
                "use_regex": "true",
                "disable_stats": "true",
                "columns": "name",
            },
        )
        try:
            found = _read_queues(answer.content)
        except msgspec.MsgspecError as error:
            raise Unavailable(_UNREADABLE) from error
        return [queue.name for queue in found.items], found.page_count

    async def _ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        try:
            answer = await self._http.request(method, path, **more)
        except httpx2.HTTPError as error:
            raise Unavailable("the broker's management API cannot be reached") from error
        if answer.status_code == 404 and method == "DELETE":
            return answer
        if not answer.is_success:
            raise Unavailable(f"the broker's management API answered {answer.status_code}")
        return answer
