"""Logging in by a tenant's own identity provider.

A browser goes there and comes back; what it keeps meanwhile binds the way to it. It comes back with
the refresh token in a cookie, and asks for an access token as after any other reload.
"""

import secrets
from typing import Annotated
from urllib.parse import parse_qsl, quote, urlsplit
from uuid import UUID
from xml.etree import ElementTree as ET  # nosec B405

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field, SecretStr
from starlette.responses import RedirectResponse

from libs.common.errors import (
    AppError,
    Conflict,
    Invalid,
    Malformed,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    invalid,
)
from libs.common.http.access import public
from libs.common.http.problems import problems
from libs.common.http.schemas import Out
from services.gateway.adapters.identity_providers import (
    Door,
    Entered,
    IdentityProviders,
    Offered,
)
from services.gateway.api.browser import check_https, own_url, put_cookie
from services.gateway.api.deps import AllAttempts, AllSessions
from services.gateway.api.entering import (
    ClientOf,
    Entering,
    TokensOut,
    check_entering,
    client_of,
    tell_standing,
    tokens_out,
)
from services.gateway.domain.secret import hash_secret
from services.gateway.usecases.sessions import Sessions

router = APIRouter(prefix="/api/v1/auth/sso", tags=["auth"])

WAY_COOKIE = "__Host-iiot_sso"
WAY_TAKES_S = 600
MAX_RESPONSE = 400 * 1024
"""Bytes of what a SAML provider has a browser post."""

_METADATA = "urn:oasis:names:tc:SAML:2.0:metadata"

Tenant = Annotated[str, Field(max_length=64)]


class OfferedOut(Out):
    """A way to log in."""

    id: UUID
    name: Annotated[str, Field(description="What is on the button.", examples=["Plant login"])]
    kind: Annotated[str, Field(description="`oidc`, `saml`: send the browser to `…/start`. `ldap`: `…/login`.", examples=["oidc"])]  # fmt: skip


class DirectoryLogin(Entering):
    """What someone shows to their directory."""

    login: Annotated[str, Field(min_length=1, max_length=256, examples=["ann"])]
    password: Annotated[
        SecretStr, Field(min_length=1, max_length=1024, examples=["correct horse battery staple"])
    ]


def _providers(request: Request) -> IdentityProviders:
    providers: IdentityProviders = request.app.state.identity_providers
    return providers


TheProviders = Annotated[IdentityProviders, Depends(_providers)]


def _return_to(
    return_to: Annotated[
        str,
        Query(max_length=1024, description="Where to go then: an address within the console."),
    ] = "/",
) -> str:
    # No other site, however it is written: browsers read a backslash as a slash.
    if not return_to.startswith("/") or return_to.startswith("//") or "\\" in return_to:
        raise invalid("?return_to", "must be an address within the console, such as /alerts")
    parts = urlsplit(return_to)
    if parts.scheme or parts.netloc:
        raise invalid("?return_to", "must be an address within the console, such as /alerts")
    return return_to


@router.get("/tenants/{tenant}", responses=problems(Unavailable, TooManyRequests))
@public("what is offered to people who are not known yet")
async def list_ways_in(tenant: Tenant, providers: TheProviders) -> list[OfferedOut]:
    """List the identity providers of a tenant, by its short name; none if there is no such tenant."""
    return [OfferedOut.model_validate(each) for each in await providers.offered(tenant)]


@router.get(
    "/tenants/{tenant}/{provider_id}/start",
    status_code=303,
    response_class=RedirectResponse,
    responses=problems(NotFound, Conflict, Invalid, Unavailable, TooManyRequests),
)
@public("whoever is to log in is not known yet")
async def start_sign_on(
    tenant: Tenant,
    provider_id: UUID,
    request: Request,
    providers: TheProviders,
    return_to: Annotated[str, Depends(_return_to)],
) -> Response:
    """Send the browser to the tenant's identity provider."""
    check_https(request)
    browser = secrets.token_urlsafe(32)
    address = await providers.begin(
        await _offered(providers, tenant, provider_id),
        _door(request),
        browser=_kept(browser),
        return_to=return_to,
    )
    answer = RedirectResponse(address, 303)
    # None: a SAML provider has the browser post, which comes from another site.
    answer.set_cookie(
        WAY_COOKIE,
        browser,
        max_age=WAY_TAKES_S,
        path="/",
        secure=True,
        httponly=True,
        samesite="none",
    )
    return answer


@router.get("/return", status_code=303, response_class=RedirectResponse)
@public("the provider's answer is the credential")
async def return_from_openid(
    request: Request, providers: TheProviders, sessions: AllSessions
) -> Response:
    """Come back from an OpenID provider: with a session, or with what went wrong behind the `#`."""
    browser = _kept(request.cookies.get(WAY_COOKIE, ""))
    try:
        answer = dict(parse_qsl(request.url.query, keep_blank_values=True, max_num_fields=20))
    except ValueError:
        return _back_with(Malformed("the identity provider's answer cannot be read"))
    try:
        entered = await providers.return_by_oidc(answer, browser=browser)
        return await _back(entered, request, sessions)
    except AppError as error:
        return _back_with(error)


@router.post("/saml", status_code=303, response_class=RedirectResponse, max_body_size=MAX_RESPONSE)
@public("the provider's response is the credential")
async def return_from_saml(
    request: Request, providers: TheProviders, sessions: AllSessions
) -> Response:
    """Come back from a SAML provider: with a session, or with what went wrong behind the `#`."""
    browser = _kept(request.cookies.get(WAY_COOKIE, ""))
    try:
        form = dict(parse_qsl((await request.body()).decode(), max_num_fields=20))
    except ValueError:
        return _back_with(Malformed("the identity provider's response cannot be read"))
    try:
        entered = await providers.return_by_saml(
            form.get("SAMLResponse", ""), form.get("RelayState", "")[:256], browser=browser
        )
        return await _back(entered, request, sessions)
    except AppError as error:
        return _back_with(error)


@router.get("/saml/metadata", include_in_schema=False)
@public("what a provider wants to know of us; it names no tenant")
async def get_saml_metadata(request: Request) -> Response:
    """Return what a SAML provider wants to know of us."""
    door = _door(request)
    # XML is written with it, and none is read.
    ET.register_namespace("md", _METADATA)
    root = ET.Element(f"{{{_METADATA}}}EntityDescriptor", entityID=door.saml_entity_id)
    role = ET.SubElement(
        root,
        f"{{{_METADATA}}}SPSSODescriptor",
        AuthnRequestsSigned="false",
        WantAssertionsSigned="true",
        protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol",
    )
    ET.SubElement(
        role,
        f"{{{_METADATA}}}AssertionConsumerService",
        Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST",
        Location=door.saml_consumer_url,
        index="0",
        isDefault="true",
    )
    document = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return Response(document, media_type="application/samlmetadata+xml")


@router.post(
    "/tenants/{tenant}/{provider_id}/login",
    responses=problems(Unauthenticated, NotFound, TooManyRequests, Unavailable),
    max_body_size=8192,
)
@public("here one gets a credential")
async def log_in_by_directory(
    tenant: Tenant,
    provider_id: UUID,
    body: DirectoryLogin,
    request: Request,
    response: Response,
    providers: TheProviders,
    sessions: AllSessions,
    attempts: AllAttempts,
    client: ClientOf,
) -> TokensOut:
    """Open a session with the name and password that the tenant's directory knows."""
    check_entering(body, request)
    directory = await _offered(providers, tenant, provider_id)
    account = f"{provider_id} {body.login.strip().casefold()}"
    async with attempts.attempt(account, request.state.address) as standing:
        tell_standing(response, standing)
        entered = await providers.log_in(directory, body.login, body.password.get_secret_value())
    tokens = await sessions.enter_by_provider(entered.user_id, entered.tenant_id, client)
    await attempts.note_success(account, client.address)
    return tokens_out(tokens, request, response, cookie=body.cookie)


async def _offered(providers: IdentityProviders, tenant: str, provider_id: UUID) -> Offered:
    for each in await providers.offered(tenant):
        if each.id == provider_id:
            return each
    raise NotFound(f"no identity provider {provider_id}")


async def _back(entered: Entered, request: Request, sessions: Sessions) -> Response:
    tokens = await sessions.enter_by_provider(
        entered.user_id, entered.tenant_id, client_of(request)
    )
    answer = RedirectResponse(entered.return_to, 303)
    put_cookie(answer, tokens.refresh_token, sessions.lifetimes.refresh)
    _forget_way(answer)
    return answer


def _back_with(error: AppError) -> Response:
    """Lead back to the console, which tells the person what went wrong."""
    answer = RedirectResponse(f"/login#sso_error={quote(str(error))}", 303)
    _forget_way(answer)
    return answer


def _forget_way(answer: Response) -> None:
    answer.delete_cookie(WAY_COOKIE, path="/", secure=True, httponly=True, samesite="none")


def _kept(browser: str) -> str:
    """Return what tenancy keeps of what the browser keeps."""
    return hash_secret(browser).hex()


def _door(request: Request) -> Door:
    base = f"{own_url(request)}{router.prefix}"
    return Door(f"{base}/return", f"{base}/saml", f"{base}/saml/metadata")
