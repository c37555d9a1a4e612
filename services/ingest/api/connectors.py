"""Connections out, over HTTP."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import Field, SecretStr

from libs.common.errors import Conflict, Forbidden, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.ingest.api.deps import CanReadConnectors, CanWriteConnectors, InTransaction
from services.ingest.domain.connector import Definition, State
from services.ingest.usecases import connectors as usecases
from services.ingest.usecases.connectors import Kinds
from services.ingest.usecases.named_devices import NamedDevices

router = APIRouter(prefix="/api/v1/connectors", tags=["connectors"], route_class=IdempotentRoute)
kinds_router = APIRouter(prefix="/api/v1/connector-kinds", tags=["connectors"])


def _kinds(request: Request) -> Kinds:
    kinds: Kinds = request.app.state.connector_kinds
    return kinds


TheKinds = Annotated[Kinds, Depends(_kinds)]

_SOME_SETTINGS = {
    "url": "mqtts://broker.plant.example",
    "topics": [{"topic": "{device}/telemetry"}],
}
_SOME_SECRETS = {"password": "correct horse battery staple"}

Name = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$", examples=["Hall 3 broker"])
]
SecretName = Annotated[str, Field(max_length=64, examples=["password"])]
Settings = Annotated[
    dict[str, Any],
    Field(
        description="What its kind asks for: `GET /api/v1/connector-kinds` has the schemas.",
        examples=[_SOME_SETTINGS],
    ),
]


class ConnectorIn(Body):
    """A connection to set up."""

    name: Name
    kind: Annotated[str, Field(min_length=1, max_length=64, examples=["mqtt"])]
    is_enabled: bool = True
    settings: Settings
    secrets: Annotated[
        dict[SecretName, SecretStr],
        Field(
            default_factory=dict,
            max_length=16,
            description="Kept sealed and never shown again.",
            examples=[_SOME_SECRETS],
        ),
    ]


class ConnectorChange(Body):
    """What is to change of a connector; what is left out stays."""

    name: Name | None = None
    is_enabled: bool | None = None
    settings: Annotated[
        dict[str, Any] | None,
        Field(
            description="All of them: they take the place of the old.", examples=[_SOME_SETTINGS]
        ),
    ] = None
    secrets: Annotated[
        dict[SecretName, SecretStr | None] | None,
        Field(
            max_length=16,
            description="Those to change; null forgets one, others stay.",
            examples=[_SOME_SECRETS],
        ),
    ] = None


class ConnectorOut(Out):
    """A connection, and how it does."""

    id: UUID
    name: Annotated[str, Field(examples=["Hall 3 broker"])]
    kind: Annotated[str, Field(examples=["mqtt"])]
    is_enabled: bool
    settings: Annotated[dict[str, Any], Field(examples=[_SOME_SETTINGS])]
    secrets: Annotated[list[str], Field(examples=[["password"]])]
    """The names of those that are set."""
    state: State
    reason: Annotated[str, Field(examples=[""])]
    state_at: datetime | None
    created_at: datetime
    updated_at: datetime
    version: int


class ConnectorKindOut(Out):
    """A kind of connection."""

    name: Annotated[str, Field(examples=["mqtt"])]
    settings_schema: Annotated[
        dict[str, Any],
        Field(examples=[{"type": "object", "properties": {"url": {"type": "string"}}}]),
    ]
    secrets: Annotated[list[str], Field(examples=[["password"]])]
    can_be_browsed: bool


class BrowseIn(Body):
    """Where to look on the other side."""

    node: Annotated[str, Field(max_length=1024, examples=["ns=2;s=Hall3"])] | None = None


class _Position(msgspec.Struct):
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    id: UUID


def _to_out(connector: Definition) -> ConnectorOut:
    return ConnectorOut(
        id=connector.id,
        name=connector.name,
        kind=connector.kind,
        is_enabled=connector.is_enabled,
        settings=connector.settings,
        secrets=sorted(connector.secrets),
        state=connector.state,
        reason=connector.reason,
        state_at=connector.state_at,
        created_at=connector.created_at,
        updated_at=connector.updated_at,
        version=connector.version,
    )


@kinds_router.get("")
async def list_connector_kinds(who: CanReadConnectors, kinds: TheKinds) -> list[ConnectorKindOut]:
    """List the kinds of connections that there are, each with the schema of its settings."""
    return [
        ConnectorKindOut(
            name=kind.name,
            settings_schema=kind.settings.model_json_schema(),
            secrets=sorted(kind.secrets),
            can_be_browsed=kind.browse is not None,
        )
        for kind in kinds
    ]


@router.post("", status_code=201, responses=problems(Conflict))
async def create_connector(
    body: ConnectorIn, who: CanWriteConnectors, store: InTransaction, kinds: TheKinds, now: Now
) -> ConnectorOut:
    """Set a connection up. It is made at once, and made again whenever it is lost."""
    connector = await usecases.create(
        store,
        kinds,
        name=body.name,
        kind=body.kind,
        is_enabled=body.is_enabled,
        settings=body.settings,
        secrets=body.secrets,
        at=now,
    )
    return _to_out(connector)


@router.get("", responses=problems(Malformed))
async def list_connectors(
    who: CanReadConnectors, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[ConnectorOut]:
    """List the connections, oldest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    found = await store.connectors.page(limit + 1, after)
    more, found = len(found) > limit, found[:limit]
    return Page(
        items=[_to_out(connector) for connector in found],
        next_cursor=encode_cursor(_Position(found[-1].created_at, found[-1].id)) if more else None,
    )


@router.get("/{connector_id}", responses=problems(NotFound))
async def get_connector(
    connector_id: UUID, who: CanReadConnectors, store: InTransaction
) -> ConnectorOut:
    """Return one connection, and how it does."""
    return _to_out(await store.connectors.get(connector_id))


@router.patch("/{connector_id}", responses=problems(NotFound, Conflict, PreconditionFailed))
async def change_connector(
    connector_id: UUID,
    body: ConnectorChange,
    who: CanWriteConnectors,
    store: InTransaction,
    kinds: TheKinds,
    now: Now,
    if_match: Annotated[
        str | None, Header(pattern=r'^"?\d{1,9}"?$', description="The version that you saw.")
    ] = None,
) -> ConnectorOut:
    """Change a connection, or switch it on or off. It is made anew with what changed."""
    connector = await usecases.change(
        store,
        kinds,
        connector_id,
        name=body.name,
        is_enabled=body.is_enabled,
        settings=body.settings,
        secrets=body.secrets,
        version=int(if_match.strip('"')) if if_match else None,
        at=now,
    )
    return _to_out(connector)


@router.delete("/{connector_id}", status_code=204, responses=problems(NotFound))
async def remove_connector(
    connector_id: UUID, who: CanWriteConnectors, store: InTransaction, now: Now
) -> Response:
    """Remove a connection. What it brought stays."""
    await usecases.remove(store, connector_id, at=now)
    return Response(status_code=204)


@router.post("/{connector_id}/browse", responses=problems(NotFound, Conflict, Forbidden))
async def browse_connector(
    request: Request, connector_id: UUID, body: BrowseIn, who: CanWriteConnectors, kinds: TheKinds
) -> list[dict[str, Any]]:
    """List what lies below a node of the other side, over a connection made for it."""
    # The other side may take its time: no transaction is held open meanwhile.
    state = request.app.state
    async with state.transactions.begin(who.tenant_id) as store:
        kept = await store.connectors.get(connector_id)
    devices = NamedDevices(who.tenant_id, state.sources, state.transactions)
    return await usecases.browse(kinds, kept, devices, body.node)
