"""API keys: how programs come in."""

from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import Field, field_validator

from libs.common.addresses import Network
from libs.common.auth.api_key import new_handle, new_secret
from libs.common.errors import Conflict, Forbidden, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Duration, Moment, Out
from services.tenancy.api.deps import CanReadApiKeys, CanWriteApiKeys, InTransaction, SeenVersion
from services.tenancy.api.schemas import Name
from services.tenancy.domain.api_key import MAX_OVERLAP, ApiKey
from services.tenancy.usecases import api_keys as usecases

router = APIRouter(prefix="/api/v1/api-keys", tags=["api keys"], route_class=IdempotentRoute)

Scopes = Annotated[
    list[Annotated[str, Field(max_length=64)]],
    Field(min_length=1, max_length=100, examples=[["telemetry:write", "devices:read"]]),
]
Networks = Annotated[
    list[IPv4Network | IPv6Network], Field(max_length=50, examples=[["192.0.2.0/24"]])
]
Groups = Annotated[list[UUID], Field(min_length=1, max_length=100)]


class ApiKeyIn(Body):
    """A key to make."""

    name: Name
    scopes: Scopes
    expires_at: Moment | None = None
    """Absent: never."""
    allowed_networks: Networks | None = None
    """From where it may be used. Absent: from anywhere."""
    device_groups: Groups | None = None
    """The groups whose devices it reaches, with all below them. Absent: all devices."""


class ApiKeyChange(Body):
    """What is to change of a key; what is left out stays, and null lifts a limit."""

    name: Name | None = None
    scopes: Scopes | None = None
    expires_at: Moment | None = None
    allowed_networks: Networks | None = None
    device_groups: Groups | None = None


class Rotation(Body):
    """How a key changes its secret."""

    overlap: Annotated[Duration, Field(ge=timedelta(0), le=MAX_OVERLAP)] = timedelta(days=1)
    """How long the present secret is good beside the new one: seven days at most."""


class ApiKeyOut(Out):
    """An API key, without its secret."""

    id: UUID
    name: Annotated[str, Field(examples=["Press line MES"])]
    handle: Annotated[str, Field(examples=["iiotk_7Kq2mX9d"])]
    """What the key begins with."""
    scopes: Annotated[list[str], Field(examples=[["devices:read", "telemetry:write"]])]
    allowed_networks: Annotated[list[str], Field(examples=[["192.0.2.0/24"]])]
    """Empty: it may be used from anywhere."""
    device_groups: list[UUID] | None
    """Null: it reaches all devices."""
    expires_at: datetime | None
    overlap_until: datetime | None
    """Until when the secret before the last rotation is good."""
    created_by: UUID
    created_by_name: str | None
    """Null: they have left."""
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None
    """Told once a minute."""
    last_used_address: str | None
    version: int

    @field_validator("allowed_networks", mode="before")
    @classmethod
    def _as_text(cls, networks: tuple[Network, ...]) -> list[str]:
        return [str(network) for network in networks]


class NewApiKeyOut(ApiKeyOut):
    """An API key with its secret, which is shown now and never again."""

    key: Annotated[str, Field(examples=["iiotk_7Kq2mX9d_shown-this-once"])]
    """Send it as `Authorization: Bearer …`, or as `X-API-Key`."""


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.post("", status_code=201, responses=problems(Conflict, Forbidden))
async def create_api_key(
    body: ApiKeyIn, who: CanWriteApiKeys, store: InTransaction, request: Request, now: Now
) -> NewApiKeyOut:
    """Make a key, which may do no more than you may. It is shown once."""
    secret = new_secret(new_handle())
    key = ApiKey(
        id=uuid4(),
        name=body.name,
        handle=secret.handle,
        scopes=tuple(dict.fromkeys(body.scopes)),
        allowed_networks=tuple(dict.fromkeys(body.allowed_networks or ())),
        device_groups=None if body.device_groups is None else frozenset(body.device_groups),
        expires_at=body.expires_at,
        overlap_until=None,
        created_by=who.subject,
        created_at=now,
        updated_at=now,
        version=1,
    )
    most: int = request.app.state.api_keys_per_tenant
    return _shown(await usecases.create(store, key, secret, by=who, most=most), secret.key)


@router.get("", responses=problems(Malformed))
async def list_api_keys(
    who: CanReadApiKeys, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[ApiKeyOut]:
    """List the tenant's keys, oldest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    keys = await store.api_keys.page(limit + 1, after)
    more, keys = len(keys) > limit, keys[:limit]
    return Page(
        items=[ApiKeyOut.model_validate(key) for key in keys],
        next_cursor=encode_cursor(_Position(keys[-1].created_at, keys[-1].id)) if more else None,
    )


@router.get("/{api_key_id}", responses=problems(NotFound))
async def get_api_key(api_key_id: UUID, who: CanReadApiKeys, store: InTransaction) -> ApiKeyOut:
    """Return one of the tenant's keys."""
    return ApiKeyOut.model_validate(await store.api_keys.get(api_key_id))


@router.patch("/{api_key_id}", responses=problems(NotFound, Forbidden, PreconditionFailed))
async def change_api_key(
    api_key_id: UUID,
    body: ApiKeyChange,
    who: CanWriteApiKeys,
    store: InTransaction,
    version: SeenVersion,
    now: Now,
) -> ApiKeyOut:
    """Change a key's name, scopes, end, networks or device groups; it takes effect within seconds."""
    key = await usecases.change(store, api_key_id, _changes(body), version=version, by=who, at=now)
    return ApiKeyOut.model_validate(key)


@router.post("/{api_key_id}/rotate", status_code=201, responses=problems(NotFound, Forbidden))
async def rotate_api_key(
    api_key_id: UUID, body: Rotation, who: CanWriteApiKeys, store: InTransaction, now: Now
) -> NewApiKeyOut:
    """Give a key a new secret, shown once; the present one is good for a while, any before is void."""
    key, secret = await usecases.rotate(store, api_key_id, overlap=body.overlap, by=who, at=now)
    return _shown(key, secret.key)


@router.delete("/{api_key_id}", status_code=204, responses=problems(NotFound, Forbidden))
async def revoke_api_key(
    api_key_id: UUID, who: CanWriteApiKeys, store: InTransaction, now: Now
) -> Response:
    """Void a key at once; live connections opened with it are closed."""
    await usecases.revoke(store, api_key_id, by=who, at=now)
    return Response(status_code=204)


def _changes(body: ApiKeyChange) -> usecases.Changes:
    changes = usecases.Changes()
    if body.name is not None:
        changes["name"] = body.name
    if body.scopes is not None:
        changes["scopes"] = tuple(dict.fromkeys(body.scopes))
    given = body.model_fields_set
    if "expires_at" in given:
        changes["expires_at"] = body.expires_at
    if "allowed_networks" in given:
        changes["allowed_networks"] = tuple(dict.fromkeys(body.allowed_networks or ()))
    if "device_groups" in given:
        groups = body.device_groups
        changes["device_groups"] = None if groups is None else frozenset(groups)
    return changes


def _shown(key: ApiKey, secret: str) -> NewApiKeyOut:
    return NewApiKeyOut(**ApiKeyOut.model_validate(key).model_dump(), key=secret)
