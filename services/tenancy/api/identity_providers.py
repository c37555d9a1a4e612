"""Where a tenant's people log in, as its admins set it up."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Response
from pydantic import Field, SecretStr

from libs.common.errors import (
    Conflict,
    Forbidden,
    NotFound,
    PreconditionFailed,
    Unavailable,
    invalid,
)
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import (
    CanReadIdentityProviders,
    CanWriteIdentityProviders,
    InTransaction,
    SeenVersion,
    TheSealing,
)
from services.tenancy.api.schemas import Name
from services.tenancy.domain import identity_provider as domain
from services.tenancy.domain.identity_provider import IdentityProvider, Kind, ProviderSettings
from services.tenancy.usecases import identity_providers as usecases

router = APIRouter(
    prefix="/api/v1/identity-providers", tags=["identity providers"], route_class=IdempotentRoute
)

Word = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$")]
Words = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00-\x1f]*$")]
Address = Annotated[str, Field(min_length=8, max_length=2048)]
Pem = Annotated[str, Field(max_length=16_384)]
RoleName = Annotated[str, Field(max_length=64)]
Domain = Annotated[str, Field(max_length=253, examples=["plant.example"])]


class OidcIn(Body):
    """An OpenID provider (Keycloak, Entra ID, Okta, Google Workspace)."""

    kind: Literal[Kind.OIDC]
    issuer: Annotated[Address, Field(examples=["https://login.plant.example/realms/plant"])]
    client_id: Annotated[Word, Field(examples=["iiot-platform"])]
    scopes: Annotated[tuple[Word, ...], Field(min_length=1, max_length=20)] = (
        "openid",
        "email",
        "profile",
    )
    groups_claim: Word = "groups"


class SamlIn(Body):
    """A SAML 2.0 provider (ADFS, Shibboleth)."""

    kind: Literal[Kind.SAML]
    entity_id: Annotated[
        Word,
        Field(
            description="Its own name: the issuer of its assertions.",
            examples=["https://login.plant.example/saml"],
        ),
    ]
    sign_in_url: Annotated[Address, Field(examples=["https://login.plant.example/saml/sso"])]
    certificates: Annotated[
        list[Pem], Field(min_length=1, max_length=4, description="PEM; any may have signed.")
    ]
    email_attribute: Word = "email"
    name_attribute: Word = "name"
    groups_attribute: Word = "groups"


class LdapIn(Body):
    """A directory (OpenLDAP, Active Directory), always under TLS."""

    kind: Literal[Kind.LDAP]
    url: Annotated[Address, Field(examples=["ldaps://directory.plant.example"])]
    base_dn: Annotated[Words, Field(examples=["ou=people,dc=plant,dc=example"])]
    bind_dn: Annotated[Words, Field(description="Who searches; empty: anonymously.")] = ""
    user_filter: Words = "(|(uid={login})(mail={login})(sAMAccountName={login}))"
    group_filter: Annotated[Words, Field(description="Empty: `memberOf` of the user.")] = (
        "(member={dn})"
    )
    group_base_dn: Words = ""
    id_attribute: Word = "entryUUID"
    email_attribute: Word = "mail"
    name_attribute: Word = "cn"
    ca: Annotated[Pem, Field(description="PEM; empty: what the machine trusts.")] = ""


SettingsIn = Annotated[OidcIn | SamlIn | LdapIn, Field(discriminator="kind")]
RolesOfGroup = Annotated[
    dict[Word, Annotated[list[RoleName], Field(min_length=1, max_length=20)]],
    Field(
        max_length=200,
        description="Which roles the groups there have here. Names are compared in any case.",
        examples=[{"shift-leads": ["operator"]}],
    ),
]
DefaultRoles = Annotated[
    list[RoleName],
    Field(
        max_length=20, description="What everybody has who comes in by it.", examples=[["viewer"]]
    ),
]
Domains = Annotated[
    list[Domain],
    Field(
        min_length=1, max_length=50, description="It vouches for addresses of these domains alone."
    ),
]
Secret = Annotated[
    SecretStr | None,
    Field(
        max_length=1024,
        description="Of the client (OIDC) or of who searches (LDAP). Kept sealed, never shown again.",
    ),
]


class IdentityProviderIn(Body):
    """A provider by which people are to come in."""

    name: Annotated[Name, Field(description="What is on the button.")]
    settings: SettingsIn
    secret: Secret = None
    domains: Domains
    roles_of_group: Annotated[RolesOfGroup, Field(default_factory=dict)]
    default_roles: Annotated[DefaultRoles, Field(default_factory=list)]
    is_enabled: bool = True


class IdentityProviderChange(Body):
    """What is to change; what is left out stays."""

    name: Name | None = None
    settings: Annotated[
        SettingsIn | None, Field(description="All of them, of the same kind as before.")
    ] = None
    secret: Annotated[Secret, Field(description="Another one; an empty one is forgotten.")] = None
    domains: Domains | None = None
    roles_of_group: RolesOfGroup | None = None
    default_roles: DefaultRoles | None = None
    is_enabled: bool | None = None


class IdentityProviderOut(Out):
    """A provider by which people come in."""

    id: UUID
    name: Annotated[str, Field(examples=["Acme's own login"])]
    settings: SettingsIn
    domains: Annotated[list[str], Field(examples=[["plant.example"]])]
    roles_of_group: Annotated[dict[str, list[str]], Field(examples=[{"shift-leads": ["operator"]}])]
    default_roles: Annotated[list[str], Field(examples=[["viewer"]])]
    is_enabled: bool
    created_at: datetime
    updated_at: datetime
    version: int


@router.post("", status_code=201, responses=problems(Conflict, Forbidden, Unavailable))
async def create_identity_provider(
    body: IdentityProviderIn,
    who: CanWriteIdentityProviders,
    store: InTransaction,
    sealing: TheSealing,
    now: Now,
) -> IdentityProviderOut:
    """Let the tenant's people come in by a provider of their own.

    Whoever it vouches for becomes a member, with the roles of their groups and no others. They are
    let in to this tenant alone, and are no platform administrators there.
    """
    provider = IdentityProvider(
        id=uuid4(),
        name=body.name,
        kind=body.settings.kind,
        settings=_settings(body.settings),
        domains=tuple(body.domains),
        roles_of_group={group: tuple(roles) for group, roles in body.roles_of_group.items()},
        default_roles=tuple(body.default_roles),
        is_enabled=body.is_enabled,
        created_at=now,
        updated_at=now,
        version=1,
    )
    secret = body.secret.get_secret_value() if body.secret else None
    await usecases.create(store, provider, secret, sealing, held=who.permissions)
    return _out(provider)


@router.get("")
async def list_identity_providers(
    who: CanReadIdentityProviders, store: InTransaction
) -> list[IdentityProviderOut]:
    """List the tenant's identity providers, by name."""
    return [_out(provider) for provider in await store.identity_providers.all()]


@router.get("/{provider_id}", responses=problems(NotFound))
async def get_identity_provider(
    provider_id: UUID, who: CanReadIdentityProviders, store: InTransaction
) -> IdentityProviderOut:
    """Return one of the tenant's identity providers."""
    return _out(await store.identity_providers.get(provider_id))


@router.patch(
    "/{provider_id}",
    responses=problems(NotFound, Conflict, Forbidden, PreconditionFailed, Unavailable),
)
async def change_identity_provider(
    provider_id: UUID,
    body: IdentityProviderChange,
    who: CanWriteIdentityProviders,
    store: InTransaction,
    sealing: TheSealing,
    version: SeenVersion,
    now: Now,
) -> IdentityProviderOut:
    """Change a provider. Who is logged in by it stays so until their session ends."""
    before = await store.identity_providers.get(provider_id)
    if body.settings is not None and body.settings.kind is not before.kind:
        raise invalid("#/settings/kind", f"is {before.kind}, and stays so")
    provider = IdentityProvider(
        id=before.id,
        name=body.name or before.name,
        kind=before.kind,
        settings=before.settings if body.settings is None else _settings(body.settings),
        domains=before.domains if body.domains is None else tuple(body.domains),
        roles_of_group=before.roles_of_group
        if body.roles_of_group is None
        else {group: tuple(roles) for group, roles in body.roles_of_group.items()},
        default_roles=before.default_roles
        if body.default_roles is None
        else tuple(body.default_roles),
        is_enabled=before.is_enabled if body.is_enabled is None else body.is_enabled,
        created_at=before.created_at,
        updated_at=before.updated_at,
        version=before.version,
    )
    changed = await usecases.change(
        store,
        provider,
        sealing,
        secret=body.secret.get_secret_value() if body.secret else None,
        version=version,
        held=who.permissions,
        at=now,
    )
    return _out(changed)


@router.delete("/{provider_id}", status_code=204, responses=problems(NotFound, Forbidden))
async def remove_identity_provider(
    provider_id: UUID, who: CanWriteIdentityProviders, store: InTransaction
) -> Response:
    """Let nobody come in by a provider any more. Who came in by it stays a member."""
    await usecases.remove(store, provider_id, held=who.permissions)
    return Response(status_code=204)


def _settings(given: OidcIn | SamlIn | LdapIn) -> ProviderSettings:
    match given:
        case OidcIn():
            return domain.OidcSettings(
                given.issuer, given.client_id, tuple(given.scopes), given.groups_claim
            )
        case SamlIn():
            return domain.SamlSettings(
                given.entity_id,
                given.sign_in_url,
                tuple(given.certificates),
                given.email_attribute,
                given.name_attribute,
                given.groups_attribute,
            )
        case LdapIn():
            return domain.LdapSettings(**given.model_dump(exclude={"kind"}))


def _out(provider: IdentityProvider) -> IdentityProviderOut:
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name in provider.settings.__dataclass_fields__
        for value in (getattr(provider.settings, name),)
    }
    return IdentityProviderOut.model_validate(
        {
            "id": provider.id,
            "name": provider.name,
            "settings": {"kind": provider.kind, **settings},
            "domains": provider.domains,
            "roles_of_group": provider.roles_of_group,
            "default_roles": provider.default_roles,
            "is_enabled": provider.is_enabled,
            "created_at": provider.created_at,
            "updated_at": provider.updated_at,
            "version": provider.version,
        }
    )
