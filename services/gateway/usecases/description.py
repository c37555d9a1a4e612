"""The API of all services as one document."""

import asyncio
import time
from collections.abc import Callable, Mapping

import httpx2
import msgspec
import structlog

from libs.common.db.engine import unbound
from libs.common.errors import TooManyRequests, Unavailable
from libs.common.http.openapi import add_problems, share_problems
from libs.common.http.problems import PROBLEM_HEADERS
from libs.common.version import VERSION
from services.gateway.adapters.upstreams import Upstreams
from services.gateway.domain.openapi import Document, merge

log = structlog.get_logger(__name__)

FRESH_S = 60.0
TITLE = "INSA IIoT Platform"
DESCRIPTION = (
    "Devices, telemetry, rules, alerts and everything around them. Log in at `/api/v1/auth/login` "
    "and send the access token as `Authorization: Bearer …`. Errors are `application/problem+json` "
    "(RFC 9457). A POST that creates takes an `Idempotency-Key` and may then be sent again. "
    "Live updates: WebSocket at `/api/v1/ws`, with a ticket from "
    "`/api/v1/auth/ws-ticket`."
)


_TOLD = {
    "X-Request-Id": "RequestId",
    "RateLimit": "RateLimit",
    "RateLimit-Policy": "RateLimitPolicy",
}
_HEADERS: dict[str, Document] = {
    **PROBLEM_HEADERS,
    "RateLimit": {
        "description": "How many requests are left (`r`), and in how many seconds all are again (`t`).",
        "schema": {"type": "string"},
        "example": '"user";r=998;t=60',
    },
    "RateLimitPolicy": {
        "description": "The limit that counts: so many requests (`q`) in so many seconds (`w`).",
        "schema": {"type": "string"},
        "example": '"user";q=1000;w=60',
    },
}


def describe(documents: Mapping[str, Document]) -> Document:
    """Return the API as clients see it: of all services, and what the gateway adds to each answer."""
    merged = merge(documents, title=TITLE, version=VERSION, description=DESCRIPTION)
    for item in merged["paths"].values():
        for operation in item.values():
            add_problems(operation, (TooManyRequests, Unavailable))
            for response in operation["responses"].values():
                told = response.setdefault("headers", {})
                told |= {name: {"$ref": f"#/components/headers/{of}"} for name, of in _TOLD.items()}
    merged["components"].setdefault("headers", {}).update(_HEADERS)
    share_problems(merged)
    return merged


class Description:
    """The merged OpenAPI document, looked up anew once a minute."""

    def __init__(self, upstreams: Upstreams, own: Callable[[], Document]) -> None:
        self._upstreams = upstreams
        self._own = own
        self._known: dict[str, Document] = {}
        self._encoded = b""
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    def forget(self) -> None:
        """Look anew at the next request: a service came or went."""
        self._read_at = float("-inf")
        names = {*self._upstreams.names()}
        self._known = {name: known for name, known in self._known.items() if name in names}

    async def document(self) -> bytes:
        """Return the document as JSON. A service that is away is described as it was last seen."""
        async with self._reading:
            if time.monotonic() - self._read_at > FRESH_S:
                names = self._upstreams.names()
                found = await asyncio.gather(*[self._read(name) for name in names])
                self._known |= {n: d for n, d in zip(names, found, strict=True) if d is not None}
                documents = {"gateway": self._own(), **self._known}
                self._encoded = msgspec.json.encode(describe(documents))
                # With one missing, look again at the next request.
                if all(document is not None for document in found):
                    self._read_at = time.monotonic()
        return self._encoded

    async def _read(self, name: str) -> Document | None:
        try:
            with unbound():
                answer = await self._upstreams.client(name).get("/openapi.json")
            answer.raise_for_status()
            document: Document = msgspec.json.decode(answer.content, type=dict)
        except (httpx2.HTTPError, msgspec.MsgspecError, Unavailable) as error:
            log.warning(
                "a service could not be asked for its API", upstream=name, cause=repr(error)
            )
            return None
        return document
