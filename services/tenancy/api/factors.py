"""Second factors, as the gateway asks for them: it knows who has shown a password, or has a session."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import segno
from fastapi import APIRouter, Response
from pydantic import Field, SecretStr
from webauthn.helpers import base64url_to_bytes

from libs.common.http.doors import Now
from libs.common.http.idempotency import repeatable
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import AllFactors, IsGateway
from services.tenancy.domain.passkey import Ceremony
from services.tenancy.domain.second_factor import Kind

router = APIRouter(prefix="/internal/v1", include_in_schema=False)

Code = Annotated[SecretStr, Field(max_length=64)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class Beginning(Body):
    """Whether the factor must be the user's first."""

    only_first: bool


class Confirmation(Beginning):
    """A code of the authenticator app."""

    code: Code


class Check(Body):
    """A code by which a user proves themselves."""

    kind: Literal[Kind.TOTP, Kind.RECOVERY]
    code: Code


class CeremonyIn(Body):
    """Whose site the authenticator is asked for, and the challenge."""

    rp_id: str
    origins: tuple[str, ...]
    challenge: str
    """As browsers write it: base64url without padding."""

    def ceremony(self) -> Ceremony:
        """Return it as the domain has it."""
        return Ceremony(self.rp_id, self.origins, base64url_to_bytes(self.challenge))


class PasskeyBeginning(CeremonyIn, Beginning):
    """What a passkey is to be made for."""


class PasskeyIn(PasskeyBeginning):
    """A passkey that an authenticator made."""

    name: Name
    credential: dict[str, Any]


class PasskeyRequest(CeremonyIn):
    """Whose passkey is asked for; None: anybody's."""

    user_id: UUID | None


class PasskeyUse(PasskeyRequest):
    """What an authenticator answered."""

    credential: dict[str, Any]


class PasskeyName(Body):
    """What a passkey is to be called."""

    name: Name


class AppSetUpOut(Out):
    """What an authenticator app takes over."""

    secret: str
    address: str
    qr_code: str


class CodesOut(Out):
    """Recovery codes, shown once."""

    recovery_codes: tuple[str, ...]


class FactorOut(Out):
    """One of a user's factors."""

    id: UUID
    kind: Kind
    name: str
    created_at: datetime
    last_used_at: datetime | None


class FactorsOut(Out):
    """What a user has."""

    factors: list[FactorOut]
    recovery_codes_left: int


class PasskeyOut(CodesOut):
    """A passkey that was added; with the first factor also recovery codes."""

    factor: FactorOut


class OwnerOut(Out):
    """Whose passkey it is."""

    user_id: UUID


@router.get("/users/{user_id}/factors")
async def list_factors(user_id: UUID, who: IsGateway, factors: AllFactors) -> FactorsOut:
    """Return a user's factors."""
    return FactorsOut.model_validate(await factors.of(user_id))


@router.post("/users/{user_id}/factors/totp")
async def begin_codes(
    user_id: UUID, body: Beginning, who: IsGateway, factors: AllFactors, now: Now
) -> AppSetUpOut:
    """Give an authenticator app its secret."""
    app = await factors.begin_codes(user_id, only_first=body.only_first, now=now)
    picture = segno.make(app.address, error="m").svg_data_uri(scale=4, border=4)
    return AppSetUpOut(secret=app.secret, address=app.address, qr_code=picture)


@router.post("/users/{user_id}/factors/totp/confirm")
async def confirm_codes(
    user_id: UUID, body: Confirmation, who: IsGateway, factors: AllFactors, now: Now
) -> CodesOut:
    """Let the authenticator app count."""
    codes = await factors.confirm_codes(
        user_id, body.code.get_secret_value(), only_first=body.only_first, now=now
    )
    return CodesOut(recovery_codes=codes)


@router.post("/users/{user_id}/factors/recovery-codes")
async def renew_recovery_codes(
    user_id: UUID, who: IsGateway, factors: AllFactors, now: Now
) -> CodesOut:
    """Make new recovery codes."""
    return CodesOut(recovery_codes=await factors.renew_recovery_codes(user_id, now=now))


@router.post("/users/{user_id}/factors/check", status_code=204)
async def check_code(
    user_id: UUID, body: Check, who: IsGateway, factors: AllFactors, now: Now
) -> Response:
    """Use a code up; 401 if it is none."""
    code = body.code.get_secret_value()
    if body.kind is Kind.TOTP:
        await factors.check_code(user_id, code, now=now)
    else:
        await factors.check_recovery_code(user_id, code, now=now)
    return Response(status_code=204)


@router.patch("/users/{user_id}/factors/{factor_id}")
async def rename_passkey(
    user_id: UUID, factor_id: UUID, body: PasskeyName, who: IsGateway, factors: AllFactors
) -> FactorOut:
    """Give a passkey another name."""
    return FactorOut.model_validate(await factors.rename_passkey(user_id, factor_id, body.name))


@router.delete("/users/{user_id}/factors/{factor_id}", status_code=204)
async def remove_factor(
    user_id: UUID, factor_id: UUID, who: IsGateway, factors: AllFactors, now: Now
) -> Response:
    """Take a factor away."""
    await factors.remove(user_id, factor_id, now=now)
    return Response(status_code=204)


@router.post("/users/{user_id}/passkeys/options")
async def begin_passkey(
    user_id: UUID, body: PasskeyBeginning, who: IsGateway, factors: AllFactors
) -> Mapping[str, Any]:
    """Return what an authenticator makes a passkey from."""
    return await factors.begin_passkey(user_id, body.ceremony(), only_first=body.only_first)


@router.post("/users/{user_id}/passkeys", status_code=201)
@repeatable("the gateway lets a challenge be used once, and a passkey is registered once")
async def add_passkey(
    user_id: UUID, body: PasskeyIn, who: IsGateway, factors: AllFactors, now: Now
) -> PasskeyOut:
    """Keep a passkey."""
    factor, codes = await factors.add_passkey(
        user_id,
        body.credential,
        body.ceremony(),
        name=body.name,
        only_first=body.only_first,
        now=now,
    )
    return PasskeyOut(factor=FactorOut.model_validate(factor), recovery_codes=codes)


@router.post("/passkeys/options")
async def ask_for_passkey(
    body: PasskeyRequest, who: IsGateway, factors: AllFactors
) -> Mapping[str, Any]:
    """Return what a passkey proves itself by."""
    return await factors.ask_for_passkey(body.user_id, body.ceremony())


@router.post("/passkeys/check")
async def check_passkey(
    body: PasskeyUse, who: IsGateway, factors: AllFactors, now: Now
) -> OwnerOut:
    """Return whose passkey has proved itself; 401 if none has."""
    owner = await factors.check_passkey(body.user_id, body.credential, body.ceremony(), now=now)
    return OwnerOut(user_id=owner)
