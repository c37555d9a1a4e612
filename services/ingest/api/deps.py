"""What ingest's routes ask for."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from libs.common.auth.permission import Permission, principal
from libs.common.auth.principal import HEADER, Principal
from libs.common.errors import Forbidden, Unauthenticated
from libs.common.http.doors import transaction
from services.ingest.domain.device import Source
from services.ingest.domain.token import is_token
from services.ingest.store.store import IngestStore

InTransaction = Annotated[IngestStore, Depends(transaction, scope="function")]

CanReadDevices = Annotated[Principal, Depends(Permission("devices:read"))]
CanWriteDevices = Annotated[Principal, Depends(Permission("devices:write"))]
CanReadTelemetry = Annotated[Principal, Depends(Permission("telemetry:read"))]
CanWriteTelemetry = Annotated[Principal, Depends(Permission("telemetry:write"))]


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends telemetry: a device by its token, or a user on behalf of one."""

    source: Source | None
    user: Principal | None


class TelemetrySender:
    """Lets devices pass by their own token, and users who may write telemetry."""

    permission = "telemetry:write"

    async def __call__(self, request: Request) -> Sender:
        """Return the sender. Raises Unauthenticated or Forbidden."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_token(token.strip()):
            return Sender(await request.app.state.sources.login(token.strip()), None)
        if HEADER not in request.headers:
            raise Unauthenticated("send a device's token, or log in")
        who = await principal(request)
        if not who.may(self.permission):
            raise Forbidden(f"this needs the permission {self.permission}")
        return Sender(None, who)


MaySend = Annotated[Sender, Depends(TelemetrySender())]
