"""What the gateway asks when somebody comes in by their tenant's identity provider."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import Field, SecretStr

from libs.common.http.doors import Now
from libs.common.http.schemas import Body, Out
from services.tenancy.adapters import saml
from services.tenancy.api.deps import IsGateway
from services.tenancy.domain.identity_provider import Kind
from services.tenancy.store.identity_providers import OfferedProviders
from services.tenancy.usecases.sign_on import Door, SignOn

router = APIRouter(prefix="/internal/v1/sign-on", include_in_schema=False)


def _sign_on(request: Request) -> SignOn:
    sign_on: SignOn = request.app.state.sign_on
    return sign_on


def _offered(request: Request) -> OfferedProviders:
    offered: OfferedProviders = request.app.state.offered_providers
    return offered


TheSignOn = Annotated[SignOn, Depends(_sign_on)]
AllOffered = Annotated[OfferedProviders, Depends(_offered)]


class Slug(Body):
    """Which tenant."""

    tenant: Annotated[str, Field(max_length=64)]


class DoorIn(Body):
    """Where the browser comes back to, and what we are called there."""

    oidc_redirect_uri: str
    saml_consumer_url: str
    saml_entity_id: str


class Begin(Body):
    """A browser that is to be sent to a provider."""

    tenant_id: UUID
    provider_id: UUID
    door: DoorIn
    browser: Annotated[str, Field(max_length=128)]
    return_to: Annotated[str, Field(max_length=2048)]


class OidcReturn(Body):
    """What a browser brought back from an OpenID provider."""

    answer: dict[str, str]
    browser: Annotated[str, Field(max_length=128)]


class SamlReturn(Body):
    """What a browser brought back from a SAML provider."""

    response: Annotated[SecretStr, Field(max_length=saml.LONGEST)]
    state: Annotated[str, Field(max_length=256)]
    browser: Annotated[str, Field(max_length=128)]


class DirectoryLogin(Body):
    """What somebody shows to their directory."""

    tenant_id: UUID
    provider_id: UUID
    login: Annotated[str, Field(max_length=256)]
    password: Annotated[SecretStr, Field(max_length=1024)]


class OfferedOut(Out):
    """A way to log in."""

    tenant_id: UUID
    id: UUID
    name: str
    kind: Kind


class BegunOut(Out):
    """Where the browser is sent."""

    address: str


class EnteredOut(Out):
    """Who came in where."""

    user_id: UUID
    tenant_id: UUID
    return_to: str


@router.post("/offered")
async def offered_providers(body: Slug, who: IsGateway, offered: AllOffered) -> list[OfferedOut]:
    """Return the ways to log in to a tenant; none if there is no such tenant."""
    return [OfferedOut.model_validate(each) for each in await offered.of(body.tenant)]


@router.post("/begin")
async def begin_sign_on(body: Begin, who: IsGateway, sign_on: TheSignOn, now: Now) -> BegunOut:
    """Return where to send the browser."""
    address = await sign_on.begin(
        body.tenant_id,
        body.provider_id,
        Door(**body.door.model_dump()),
        browser=body.browser,
        return_to=body.return_to,
        now=now,
    )
    return BegunOut(address=address)


@router.post("/return/oidc")
async def return_by_oidc(
    body: OidcReturn, who: IsGateway, sign_on: TheSignOn, now: Now
) -> EnteredOut:
    """Let somebody in by an OpenID provider."""
    entered = await sign_on.return_by_oidc(body.answer, browser=body.browser, now=now)
    return EnteredOut.model_validate(entered)


@router.post("/return/saml")
async def return_by_saml(
    body: SamlReturn, who: IsGateway, sign_on: TheSignOn, now: Now
) -> EnteredOut:
    """Let somebody in by a SAML provider."""
    entered = await sign_on.return_by_saml(
        body.response.get_secret_value(), body.state, browser=body.browser, now=now
    )
    return EnteredOut.model_validate(entered)


@router.post("/directory")
async def log_in_by_directory(
    body: DirectoryLogin, who: IsGateway, sign_on: TheSignOn, now: Now
) -> EnteredOut:
    """Let somebody in by a directory."""
    entered = await sign_on.log_in(
        body.tenant_id, body.provider_id, body.login, body.password.get_secret_value(), now=now
    )
    return EnteredOut.model_validate(entered)
