"""Devices' credentials, and the labels they are claimed by, over HTTP."""

import base64
import io
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

import segno
from fastapi import APIRouter, Request, Response
from pydantic import Field

from libs.common.errors import Conflict, Invalid, NotFound, Unavailable
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.ingest.api.deps import CanReadDevices, CanWriteDevices, InTransaction
from services.ingest.api.devices import DeviceOut, Name
from services.ingest.domain.credential import CredentialKind
from services.ingest.domain.provisioning import new_claim_token
from services.ingest.domain.token import new_token
from services.ingest.usecases import claims
from services.ingest.usecases import credentials as usecases

router = APIRouter(prefix="/api/v1/devices", tags=["devices"], route_class=IdempotentRoute)

LONGEST_OVERLAP_S = 30 * 86_400
LONGEST_CLAIM_S = 2 * 366 * 86_400


class CredentialIn(Body):
    """A credential to give."""

    kind: CredentialKind = CredentialKind.TOKEN
    overlap: Annotated[int, Field(ge=0, le=LONGEST_OVERLAP_S)] = 0
    """For how many seconds those of the same kind stay good that the device has."""
    certificate: Annotated[str, Field(max_length=20_000)] | None = None
    """With the kind `certificate`: the client certificate, in PEM."""


class CredentialOut(Out):
    """A credential, without what it is proved by."""

    id: UUID
    kind: CredentialKind
    identity: str | None
    """With psk and oscore: under which name the secret is looked for."""
    fingerprint: str | None
    """With certificates: the SHA-256 of the DER form, in hex."""
    created_at: datetime
    expires_at: datetime | None


class GivenCredential(CredentialOut):
    """A credential just given. What proves it is shown this once."""

    username: Annotated[str, Field(examples=["5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10"])]
    """MQTT: client id and username."""
    token: Annotated[str | None, Field(examples=["dvt_4cZ0yR7uK1mW9xQ3tB5nV8pL2sD6fG0h"])]
    """MQTT: password. HTTP: bearer token."""
    secret: str | None
    """With psk and oscore: the secret, in hex."""


class CredentialsOut(Out):
    """A device's credentials."""

    items: list[CredentialOut]


class ClaimTokenIn(Body):
    """How long a label is good."""

    lasts: Annotated[int, Field(ge=60, le=LONGEST_CLAIM_S)] = 366 * 86_400
    """In seconds."""


class LabelOut(Out):
    """A claim token, and a label for the device: a QR code that leads to the console. Shown this once."""

    claim_token: Annotated[str, Field(examples=["K7QF-2M9X-HW4T"])]
    url: Annotated[str, Field(examples=["https://iiot.plant.example/claim#K7QF-2M9X-HW4T"])]
    """What stands in the QR code."""
    expires_at: datetime
    svg: Annotated[str, Field(examples=['<svg xmlns="http://www.w3.org/2000/svg"/>'])]
    png: Annotated[str, Field(examples=["iVBORw0KGgo="])]
    """In base64."""


class ClaimIn(Body):
    """A device to claim, and what it is called and where it is from now on."""

    claim_token: Annotated[str, Field(min_length=1, max_length=64, examples=["K7QF-2M9X-HW4T"])]
    name: Name | None = None
    group_id: UUID | None = None


class ClaimedDevice(DeviceOut):
    """A device just claimed, with the credentials it is to have."""

    username: Annotated[str, Field(examples=["5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10"])]
    token: Annotated[str, Field(examples=["dvt_4cZ0yR7uK1mW9xQ3tB5nV8pL2sD6fG0h"])]


@router.post(
    "/{device_id}/credentials",
    status_code=201,
    responses=problems(NotFound, Conflict, Invalid, Unavailable),
)
async def give_device_credentials(
    request: Request,
    device_id: UUID,
    who: CanWriteDevices,
    store: InTransaction,
    now: Now,
    body: CredentialIn | None = None,
) -> GivenCredential:
    """Give a device a new credential, shown this once. Those of its kind are void after `overlap`."""
    asked = body or CredentialIn()
    issued = await usecases.issue(
        store,
        request.app.state.secrets,
        device_id,
        asked.kind,
        certificate=asked.certificate,
        overlap=timedelta(seconds=asked.overlap),
        at=now,
    )
    return GivenCredential(
        **CredentialOut.model_validate(issued.credential).model_dump(),
        username=str(device_id),
        token=issued.token,
        secret=None if issued.secret is None else issued.secret.hex(),
    )


@router.get("/{device_id}/credentials", responses=problems(NotFound))
async def list_device_credentials(
    device_id: UUID, who: CanReadDevices, store: InTransaction, now: Now
) -> CredentialsOut:
    """List the credentials that are good, oldest first."""
    await store.devices.get(device_id)
    items = await store.credentials.of_device(device_id, now)
    return CredentialsOut(items=[CredentialOut.model_validate(item) for item in items])


@router.delete(
    "/{device_id}/credentials/{credential_id}", status_code=204, responses=problems(NotFound)
)
async def withdraw_device_credential(
    device_id: UUID, credential_id: UUID, who: CanWriteDevices, store: InTransaction, now: Now
) -> Response:
    """Make a credential void at once; what the device has open is cut."""
    await usecases.withdraw(store, device_id, credential_id, at=now)
    return Response(status_code=204)


@router.post("/{device_id}/claim-token", status_code=201, responses=problems(NotFound))
async def make_claim_label(
    request: Request,
    device_id: UUID,
    who: CanWriteDevices,
    store: InTransaction,
    now: Now,
    body: ClaimTokenIn | None = None,
) -> LabelOut:
    """Make a label by which a device can be claimed, once. A label it had before is void."""
    claim_token = new_claim_token()
    lasts = timedelta(seconds=(body or ClaimTokenIn()).lasts)
    ends_at = await claims.open_claim(store, device_id, claim_token, lasts=lasts, at=now)
    # Behind the `#`, where no server along the way gets to see it.
    url = f"{request.app.state.settings.claim_url}#{claim_token}"
    svg, png = _label(url)
    return LabelOut(claim_token=claim_token, url=url, expires_at=ends_at, svg=svg, png=png)


def _label(url: str) -> tuple[str, str]:
    code = segno.make(url, error="m", micro=False)
    png = io.BytesIO()
    code.save(png, kind="png", scale=8)
    return code.svg_inline(scale=8), base64.b64encode(png.getvalue()).decode()


@router.post("/claim", status_code=201, responses=problems(NotFound, Conflict))
async def claim_device(
    body: ClaimIn, who: CanWriteDevices, store: InTransaction, now: Now
) -> ClaimedDevice:
    """Claim the device that a label belongs to. It gets new credentials, shown this once."""
    token = new_token()
    device = await claims.claim(
        store, body.claim_token, token, name=body.name, group_id=body.group_id, at=now
    )
    return ClaimedDevice(
        **DeviceOut.model_validate(device).model_dump(), username=str(device.id), token=token
    )
