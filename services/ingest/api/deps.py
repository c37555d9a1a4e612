"""What ingest's routes ask for."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from libs.common.auth.permission import Permission, principal
from libs.common.auth.principal import HEADER, Principal
from libs.common.auth.shown import shown_token
from libs.common.errors import Forbidden, Unauthenticated
from libs.common.http.doors import transaction
from services.ingest.domain.device import Source
from services.ingest.domain.token import is_token
from services.ingest.store.store import IngestStore

InTransaction = Annotated[IngestStore, Depends(transaction, scope="function")]

CanReadDevices = Annotated[Principal, Depends(Permission("devices:read"))]
CanWriteDevices = Annotated[Principal, Depends(Permission("devices:write"))]
CanWriteForAllDevices = Annotated[
    Principal, Depends(Permission("devices:write", of_whole_tenant=True))
]
CanReadConnectors = Annotated[Principal, Depends(Permission("connectors:read"))]
CanWriteConnectors = Annotated[
    Principal, Depends(Permission("connectors:write", of_whole_tenant=True))
]
CanReadCommands = Annotated[Principal, Depends(Permission("commands:read"))]
CanSendCommands = Annotated[Principal, Depends(Permission("commands:send"))]
CanReadTelemetry = Annotated[Principal, Depends(Permission("telemetry:read"))]
CanWriteTelemetry = Annotated[Principal, Depends(Permission("telemetry:write"))]


IfMatch = Annotated[
    str | None, Header(pattern=r'^"?\d{1,9}"?$', description="The version that you saw.")
]


def version_of(if_match: str | None) -> int | None:
    """Return the version that the caller saw, if it says so."""
    return int(if_match.strip('"')) if if_match else None


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
        token = shown_token(request.headers.get("authorization"))
        if token is not None and is_token(token):
            return Sender(await request.app.state.sources.login(token), None)
        if HEADER not in request.headers:
            raise Unauthenticated("send a device's token, or log in")
        who = await principal(request)
        if not who.may(self.permission):
            raise Forbidden(f"this needs the permission {self.permission}")
        return Sender(None, who)


MaySend = Annotated[Sender, Depends(TelemetrySender())]


class DeviceItself:
    """Lets a device pass by its own token, and nobody else."""

    permission = "device:itself"

    async def __call__(self, request: Request) -> Source:
        """Return the device. Raises Unauthenticated."""
        token = shown_token(request.headers.get("authorization"))
        if token is None or not is_token(token):
            raise Unauthenticated("this is for a device, with its own token")
        source: Source = await request.app.state.sources.login(token)
        return source


TheDevice = Annotated[Source, Depends(DeviceItself())]
