"""The API of all services as one document."""

import asyncio
import time
from collections.abc import Callable

import httpx2
import msgspec
import structlog

from libs.common.db.engine import unbound
from libs.common.errors import Unavailable
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


class Description:
    """The merged OpenAPI document, looked up anew once a minute."""

    def __init__(self, upstreams: Upstreams, own: Callable[[], Document]) -> None:
        self._upstreams = upstreams
        self._own = own
        self._known: dict[str, Document] = {}
        self._encoded = b""
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def document(self) -> bytes:
        """Return the document as JSON. A service that is away is described as it was last seen."""
        async with self._reading:
            if time.monotonic() - self._read_at > FRESH_S:
                names = self._upstreams.names()
                found = await asyncio.gather(*[self._read(name) for name in names])
                self._known |= {n: d for n, d in zip(names, found, strict=True) if d is not None}
                documents = {"gateway": self._own(), **self._known}
                self._encoded = msgspec.json.encode(
                    merge(documents, title=TITLE, version=VERSION, description=DESCRIPTION)
                )
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
