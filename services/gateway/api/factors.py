"""Second factors: the second step of a login, and what one sets up for oneself."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, SecretStr

from libs.common.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from libs.common.http.access import public
from libs.common.http.idempotency import repeatable
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.gateway.api.browser import from_own_page, site_of
from services.gateway.api.deps import (
    AllFactors,
    AllPasskeys,
    AllSecondSteps,
    HasJustProved,
    IsOwner,
    ProofNeeded,
)
from services.gateway.api.entering import (
    SECOND_STEP,
    ClientOf,
    Entering,
    PendingToken,
    TokensOut,
    check_entering,
    entered,
    tokens_out,
)
from services.gateway.domain.login import Proof
from services.gateway.usecases.second_step import Enrolled

router = APIRouter(prefix="/api/v1/auth", tags=["auth"], dependencies=[Depends(from_own_page)])

_CREDENTIAL = {
    "id": "Zk9x",
    "rawId": "Zk9x",
    "type": "public-key",
    "response": {
        "clientDataJSON": "eyJ0eXBlIjoi…",
        "authenticatorData": "SZYN…",
        "signature": "MEUC…",
    },
}
_TO_GET: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {
                "example": {
                    "challenge": "q83vEjRWeJA",
                    "timeout": 300000,
                    "rpId": "iiot.example",
                    "allowCredentials": [],
                    "userVerification": "required",
                }
            }
        }
    }
}
_TO_CREATE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {
                "example": {
                    "rp": {"id": "iiot.example", "name": "INSA IIoT"},
                    "user": {
                        "id": "XwwdPg",
                        "name": "ann@plant.example",
                        "displayName": "ann@plant.example",
                    },
                    "challenge": "q83vEjRWeJA",
                    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
                    "timeout": 300000,
                    "attestation": "none",
                }
            }
        }
    }
}
Code = Annotated[SecretStr, Field(min_length=1, max_length=64, examples=["492039"])]
PasskeyName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$", examples=["Ann's phone"])]  # fmt: skip
Credential = Annotated[dict[str, Any], Field(description="What `navigator.credentials` gave, as its `toJSON()` says it.", examples=[_CREDENTIAL])]  # fmt: skip
_STEP = problems(Unauthenticated, Forbidden, Invalid, TooManyRequests, Unavailable)


class CodeShown(Entering):
    """A pending login, and a code."""

    mfa_token: PendingToken
    code: Code


class PasskeyAsked(Body):
    """The pending login whose second step a passkey is to be; absent: the passkey is the whole login."""

    mfa_token: PendingToken | None = None


class PasskeyShown(Entering):
    """A passkey's answer: to the second step of a login, or to a login of its own."""

    credential: Credential
    mfa_token: PendingToken | None = None
    tenant: Annotated[str | None, Field(max_length=64, description="Without a pending login: the short name of the tenant to enter.")] = None  # fmt: skip


class Pending(Body):
    """A pending login that sets up a second factor."""

    mfa_token: PendingToken


class PasskeyEnrolled(Entering):
    """The first passkey, made for a pending login."""

    mfa_token: PendingToken
    credential: Credential
    name: PasskeyName


class CodeIn(Body):
    """A code of the authenticator app."""

    code: Code


class PasskeyIn(Body):
    """A passkey that was made."""

    name: PasskeyName
    credential: Credential


class FactorChange(Body):
    """What a passkey is to be called."""

    name: PasskeyName


class AppSetUpOut(Out):
    """What an authenticator app takes over; shown once, and counts when a code of it was shown."""

    secret: Annotated[
        str,
        Field(
            description="To be typed, in base 32.", examples=["JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"]
        ),
    ]
    address: Annotated[str, Field(description="The same as an `otpauth:` address.", examples=["otpauth://totp/INSA%20IIoT:ann%40plant.example?secret=JBSWY3DP&issuer=INSA%20IIoT"])]  # fmt: skip
    qr_code: Annotated[str, Field(description="The address as a picture: an SVG in a `data:` address.", examples=["data:image/svg+xml;charset=utf-8,%3Csvg…"])]  # fmt: skip


class RecoveryCodesOut(Out):
    """Codes for the day all factors are lost, each good once. They are shown now and never again."""

    recovery_codes: Annotated[list[str], Field(examples=[["k3vq-7xra-m2ps-4wzd"]])]


class EnrolledOut(TokensOut, RecoveryCodesOut):
    """Tokens, and the recovery codes of the first factor."""


class FactorOut(Out):
    """One of your second factors."""

    id: UUID
    kind: Annotated[str, Field(description="`totp` or `passkey`.", examples=["passkey"])]
    name: Annotated[str, Field(examples=["Ann's phone"])]
    created_at: datetime
    last_used_at: datetime | None


class FactorsOut(Out):
    """Your second factors, the oldest first."""

    items: list[FactorOut]
    recovery_codes_left: int


class PasskeyOut(FactorOut, RecoveryCodesOut):
    """A passkey that was registered; with the first factor also recovery codes, else none."""


@router.post("/login/totp", responses=_STEP, response_model_exclude_none=True, max_body_size=8192)
@public("the pending login is the credential")
async def show_code(
    body: CodeShown, steps: AllSecondSteps, client: ClientOf, request: Request, response: Response
) -> TokensOut:
    """Go on with a login: a code of the authenticator app."""
    return await _by_code(body, Proof.CODE, steps, client, request, response)


@router.post(
    "/login/recovery", responses=_STEP, response_model_exclude_none=True, max_body_size=8192
)
@public("the pending login is the credential")
async def show_recovery_code(
    body: CodeShown, steps: AllSecondSteps, client: ClientOf, request: Request, response: Response
) -> TokensOut:
    """Go on with a login: a recovery code, which is used up."""
    return await _by_code(body, Proof.RECOVERY, steps, client, request, response)


@router.post(
    "/login/passkey/options",
    responses=problems(Unauthenticated, Conflict, TooManyRequests, Unavailable) | _TO_GET,
    max_body_size=8192,
)
@public("whoever wants to log in asks for it")
async def ask_for_passkey(
    body: PasskeyAsked, steps: AllSecondSteps, passkeys: AllPasskeys, request: Request
) -> dict[str, Any]:
    """Return what `navigator.credentials.get` is called with (`publicKey`), to log in by a passkey."""
    site = site_of(request)
    if body.mfa_token is None:
        return await passkeys.ask(None, site)
    return await steps.ask_for_passkey(body.mfa_token.get_secret_value(), site)


@router.post(
    "/login/passkey",
    responses=problems(Unauthenticated, Forbidden, Conflict, Invalid, TooManyRequests, Unavailable)
    | SECOND_STEP,
    response_model=TokensOut,
    response_model_exclude_none=True,
    max_body_size=32_768,
)
@public("the passkey is the credential")
async def show_passkey(
    body: PasskeyShown,
    steps: AllSecondSteps,
    client: ClientOf,
    request: Request,
    response: Response,
) -> TokensOut | JSONResponse:
    """Log in by a passkey alone, or go on with a login by one."""
    check_entering(body, request)
    site = site_of(request)
    if body.mfa_token is None:
        outcome = await steps.log_in_by_passkey(site, body.credential, body.tenant, client)
    else:
        outcome = await steps.by_passkey(
            body.mfa_token.get_secret_value(), site, body.credential, client
        )
    return entered(outcome, request, response, cookie=body.cookie)


@router.post(
    "/login/enrol/totp",
    responses=problems(Unauthenticated, Conflict, TooManyRequests, Unavailable),
    max_body_size=8192,
)
@public("the pending login is the credential")
async def enrol_app(body: Pending, steps: AllSecondSteps) -> AppSetUpOut:
    """Go on with a login that needs a second factor: set up an authenticator app."""
    return AppSetUpOut.model_validate(await steps.begin_app(body.mfa_token.get_secret_value()))


@router.post(
    "/login/enrol/totp/confirm",
    responses=_STEP | problems(Conflict),
    response_model_exclude_none=True,
    max_body_size=8192,
)
@public("the pending login is the credential")
async def confirm_enrolled_app(
    body: CodeShown, steps: AllSecondSteps, client: ClientOf, request: Request, response: Response
) -> EnrolledOut:
    """Show a code of the app that was set up, and be in."""
    check_entering(body, request)
    enrolled = await steps.confirm_app(
        body.mfa_token.get_secret_value(), body.code.get_secret_value(), client
    )
    return _enrolled(enrolled, body, request, response)


@router.post(
    "/login/enrol/passkey/options",
    responses=problems(Unauthenticated, Conflict, TooManyRequests, Unavailable) | _TO_CREATE,
    max_body_size=8192,
)
@public("the pending login is the credential")
async def ask_for_enrolled_passkey(
    body: Pending, steps: AllSecondSteps, request: Request
) -> dict[str, Any]:
    """Return what `navigator.credentials.create` is called with, to set up a passkey as first factor."""
    return await steps.begin_passkey(body.mfa_token.get_secret_value(), site_of(request))


@router.post(
    "/login/enrol/passkey",
    responses=_STEP | problems(Conflict),
    response_model_exclude_none=True,
    max_body_size=65_536,
)
@public("the pending login is the credential")
async def enrol_passkey(
    body: PasskeyEnrolled,
    steps: AllSecondSteps,
    client: ClientOf,
    request: Request,
    response: Response,
) -> EnrolledOut:
    """Register the passkey that was made, and be in."""
    check_entering(body, request)
    enrolled = await steps.add_passkey(
        body.mfa_token.get_secret_value(), site_of(request), body.credential, body.name, client
    )
    return _enrolled(enrolled, body, request, response)


@router.get("/factors", responses=problems(Unauthenticated, ProofNeeded, Unavailable))
async def list_factors(caller: IsOwner, factors: AllFactors) -> FactorsOut:
    """List your second factors."""
    found = await factors.of(caller.access.user_id)
    return FactorsOut(
        items=[FactorOut.model_validate(factor) for factor in found.factors],
        recovery_codes_left=found.recovery_codes_left,
    )


@router.patch(
    "/factors/{factor_id}",
    responses=problems(Unauthenticated, ProofNeeded, NotFound, Unavailable),
    max_body_size=8192,
)
async def rename_factor(
    factor_id: UUID, body: FactorChange, caller: IsOwner, factors: AllFactors
) -> FactorOut:
    """Give one of your passkeys another name."""
    return FactorOut.model_validate(
        await factors.rename(caller.access.user_id, factor_id, body.name)
    )


@router.delete(
    "/factors/{factor_id}",
    status_code=204,
    responses=problems(Unauthenticated, ProofNeeded, NotFound, Unavailable),
)
async def remove_factor(factor_id: UUID, caller: HasJustProved, factors: AllFactors) -> None:
    """Take one of your factors away. With the last one the recovery codes go."""
    await factors.remove(caller.access.user_id, factor_id)


@router.post(
    "/factors/totp",
    responses=problems(Unauthenticated, ProofNeeded, Conflict, Unavailable),
    max_body_size=8192,
)
async def set_app_up(caller: HasJustProved, factors: AllFactors) -> AppSetUpOut:
    """Set up an authenticator app. It counts when you have shown a code of it."""
    return AppSetUpOut.model_validate(
        await factors.begin_app(caller.access.user_id, only_first=False)
    )


@router.post(
    "/factors/totp/confirm",
    responses=problems(Unauthenticated, ProofNeeded, Conflict, TooManyRequests, Unavailable),
    max_body_size=8192,
)
async def confirm_app(body: CodeIn, caller: HasJustProved, factors: AllFactors) -> RecoveryCodesOut:
    """Show a code of the app: from now on it is asked for. Old recovery codes are void."""
    codes = await factors.confirm_app(
        caller.access.user_id, body.code.get_secret_value(), only_first=False
    )
    return RecoveryCodesOut(recovery_codes=codes)


@router.post(
    "/factors/recovery-codes",
    responses=problems(Unauthenticated, ProofNeeded, Conflict, Unavailable),
    max_body_size=8192,
)
async def renew_recovery_codes(caller: HasJustProved, factors: AllFactors) -> RecoveryCodesOut:
    """Make new recovery codes; the old ones are void."""
    return RecoveryCodesOut(
        recovery_codes=await factors.renew_recovery_codes(caller.access.user_id)
    )


@router.post(
    "/passkeys/options",
    responses=problems(Unauthenticated, ProofNeeded, Conflict, Unavailable) | _TO_CREATE,
    max_body_size=8192,
)
async def begin_passkey(
    caller: HasJustProved, passkeys: AllPasskeys, request: Request
) -> dict[str, Any]:
    """Return what `navigator.credentials.create` is called with (`publicKey`), to register a passkey."""
    return await passkeys.begin(caller.access.user_id, site_of(request), only_first=False)


@router.post(
    "/passkeys",
    status_code=201,
    responses=problems(Unauthenticated, ProofNeeded, Conflict, Invalid, Unavailable),
    max_body_size=65_536,
)
@repeatable("what was made answers one challenge, which is good once")
async def add_passkey(
    body: PasskeyIn, caller: HasJustProved, passkeys: AllPasskeys, request: Request
) -> PasskeyOut:
    """Register the passkey that was made: a second factor, and a login of its own."""
    added = await passkeys.add(
        caller.access.user_id, site_of(request), body.credential, name=body.name, only_first=False
    )
    return PasskeyOut(
        **FactorOut.model_validate(added.factor).model_dump(), recovery_codes=added.recovery_codes
    )


async def _by_code(
    body: CodeShown,
    proof: Proof,
    steps: AllSecondSteps,
    client: ClientOf,
    request: Request,
    response: Response,
) -> TokensOut:
    check_entering(body, request)
    tokens = await steps.by_code(
        body.mfa_token.get_secret_value(), proof, body.code.get_secret_value(), client
    )
    return tokens_out(tokens, request, response, cookie=body.cookie)


def _enrolled(
    enrolled: Enrolled, body: Entering, request: Request, response: Response
) -> EnrolledOut:
    tokens = tokens_out(enrolled.tokens, request, response, cookie=body.cookie)
    return EnrolledOut(**tokens.model_dump(), recovery_codes=enrolled.recovery_codes)
