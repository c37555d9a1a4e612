"""Where notices go, over HTTP."""

import secrets
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Response
from pydantic import Field

from libs.common.auth.principal import Principal
from libs.common.errors import Conflict, Invalid, Malformed, NotFound
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from libs.common.severity import Severity
from services.alerting.adapters.webhook import write_secret
from services.alerting.api.deps import (
    CanReadChannels,
    CanWriteChannels,
    InTransaction,
    OwnTransactions,
    TheCourier,
    page_of,
)
from services.alerting.domain.channel import Channel, ChannelKind, Email, Webhook
from services.alerting.domain.outcome import Delivered
from services.alerting.usecases import channels as usecases
from services.alerting.usecases.channels import Wish

router = APIRouter(
    prefix="/api/v1/notification-channels",
    tags=["notification channels"],
    route_class=IdempotentRoute,
)

Name = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$", examples=["On call"])
]


class EmailConfig(Body):
    """A mailbox."""

    address: Annotated[str, Field(max_length=254, examples=["on-call@plant.example"])]


class WebhookConfig(Body):
    """A web server's URL, in the public internet, that is posted to."""

    url: Annotated[str, Field(max_length=2048, examples=["https://hooks.plant.example/alerts"])]


class EmailChannelIn(Body):
    """A channel that sends mail."""

    name: Name
    kind: Literal["email"]
    config: EmailConfig
    enabled: bool = True
    min_severity: Severity = Severity.INFO
    """Alerts less severe are not told here."""


class WebhookChannelIn(Body):
    """A channel that posts to a URL."""

    name: Name
    kind: Literal["webhook"]
    config: WebhookConfig
    enabled: bool = True
    min_severity: Severity = Severity.INFO
    """Alerts less severe are not told here."""


ChannelIn = Annotated[EmailChannelIn | WebhookChannelIn, Field(discriminator="kind")]


class EmailConfigOut(Out):
    """A mailbox."""

    address: Annotated[str, Field(examples=["on-call@plant.example"])]


class WebhookConfigOut(Out):
    """A URL; of its path, who may not change channels sees nothing, for it may hold a secret."""

    url: Annotated[str, Field(examples=["https://hooks.plant.example/alerts"])]


class ChannelOut(Out):
    """A notification channel."""

    id: UUID
    name: Annotated[str, Field(examples=["On call"])]
    kind: ChannelKind
    config: EmailConfigOut | WebhookConfigOut
    enabled: bool
    disabled_reason: Annotated[str, Field(examples=[""])]
    """Why the platform switched it off; empty if it did not."""
    min_severity: Severity
    created_at: datetime
    updated_at: datetime
    version: int


class NewChannelOut(ChannelOut):
    """A channel just set up."""

    secret: Annotated[str | None, Field(examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"])]
    """What a webhook's requests are signed with (standardwebhooks.com). Shown this once."""


class TryOut(Out):
    """How a test went."""

    delivered: bool
    detail: Annotated[str, Field(examples=["250 2.0.0 Ok: queued as 4F2A1"])]
    """The receiver's answer, or what was wrong."""


class _Position(msgspec.Struct):
    name: str
    id: UUID


@router.post("", status_code=201, responses=problems(Conflict, Invalid))
async def add_notification_channel(
    body: ChannelIn, who: CanWriteChannels, store: InTransaction, courier: TheCourier, now: Now
) -> NewChannelOut:
    """Set up a channel. The answer holds a webhook's secret, which is shown this once."""
    secret = write_secret(secrets.token_bytes(32)) if isinstance(body, WebhookChannelIn) else None
    channel = await usecases.add(store, courier, uuid4(), _wish(body, secret or ""), at=now)
    return NewChannelOut(**_shown(channel, who).model_dump(), secret=secret)


@router.get("", responses=problems(Malformed))
async def list_notification_channels(
    who: CanReadChannels, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[ChannelOut]:
    """List the channels by name."""
    position = decode_cursor(cursor, _Position) if cursor else None
    found = await store.channels.page(limit + 1, (position.name, position.id) if position else None)
    return page_of(
        found, limit, lambda channel: _shown(channel, who), lambda c: _Position(c.name, c.id)
    )


@router.get("/{channel_id}", responses=problems(NotFound))
async def get_notification_channel(
    channel_id: UUID, who: CanReadChannels, store: InTransaction
) -> ChannelOut:
    """Return one channel."""
    return _shown(await store.channels.get(channel_id), who)


@router.put("/{channel_id}", responses=problems(NotFound, Conflict, Invalid))
async def change_notification_channel(
    channel_id: UUID,
    body: ChannelIn,
    who: CanWriteChannels,
    store: InTransaction,
    courier: TheCourier,
    now: Now,
) -> ChannelOut:
    """Change a channel. Its kind, and a webhook's secret, stay."""
    return _shown(await usecases.change(store, courier, channel_id, _wish(body), at=now), who)


@router.delete("/{channel_id}", status_code=204, responses=problems(NotFound))
async def remove_notification_channel(
    channel_id: UUID, who: CanWriteChannels, store: InTransaction
) -> Response:
    """Remove a channel; what waits for it goes nowhere."""
    await usecases.remove(store, channel_id)
    return Response(status_code=204)


@router.post("/{channel_id}/test", responses=problems(NotFound))
async def test_notification_channel(
    channel_id: UUID,
    who: CanWriteChannels,
    transactions: OwnTransactions,
    courier: TheCourier,
    now: Now,
) -> TryOut:
    """Send a test message now, enabled or not, and say how it went."""
    outcome = await usecases.try_out(
        transactions, courier, who.tenant_id, channel_id, notification_id=uuid4(), now=now
    )
    if isinstance(outcome, Delivered):
        return TryOut(delivered=True, detail=outcome.receipt)
    return TryOut(delivered=False, detail=outcome.reason)


def _wish(body: EmailChannelIn | WebhookChannelIn, secret: str = "") -> Wish:
    target = (
        Email(body.config.address)
        if isinstance(body, EmailChannelIn)
        else Webhook(body.config.url, secret)
    )
    return Wish(
        name=body.name, target=target, is_enabled=body.enabled, min_severity=body.min_severity
    )


def _shown(channel: Channel, who: Principal) -> ChannelOut:
    config: EmailConfigOut | WebhookConfigOut
    match channel.target:
        case Email(address):
            config = EmailConfigOut(address=address)
        case Webhook(url, _):
            config = WebhookConfigOut(url=url if who.may("channels:write") else _masked(url))
    return ChannelOut(
        id=channel.id,
        name=channel.name,
        kind=channel.kind,
        config=config,
        enabled=channel.is_enabled,
        disabled_reason=channel.disabled_reason,
        min_severity=channel.min_severity,
        created_at=channel.created_at,
        updated_at=channel.updated_at,
        version=channel.version,
    )


def _masked(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"
