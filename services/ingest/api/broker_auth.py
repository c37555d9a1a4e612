"""The door by which a broker that devices connect to asks who they are and what they may.

RabbitMQ's `rabbitmq_auth_backend_http` asks here by POST, and does as the word in the answer says.
It shows a key that it shares with ingest. The gateway forwards nothing but /api/v1/, so nobody
outside reaches this.
"""

import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs
from uuid import UUID

import structlog
from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse

from libs.common.errors import AppError, NotFound, Unauthenticated
from libs.common.http.access import public
from services.ingest.domain.broker_access import may_say, may_use
from services.ingest.domain.device import Source
from services.ingest.domain.token import hash_token
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/internal/broker", include_in_schema=False)

LONGEST_BODY = 8_192

Welcome = Callable[[Source], Awaitable[None]]
"""Told of a device that the broker is about to let in."""

_keyed = public("the broker shows the key that it shares with ingest")
Asked = dict[str, str]


async def _asked(request: Request) -> Asked:
    """Return what the broker asks. Raises NotFound for everybody else."""
    state = request.app.state
    expected: str = state.settings.amqp_auth_key.get_secret_value()
    shown = request.query_params.get("key", "")
    if not expected or not hmac.compare_digest(shown.encode(), expected.encode()):
        raise NotFound("there is nothing here")
    body = await request.body()
    if len(body) > LONGEST_BODY:
        return {}
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _said(is_so: bool) -> PlainTextResponse:
    return PlainTextResponse("allow" if is_so else "deny")


def _device(asked: Asked) -> UUID | None:
    username = asked.get("username", "")
    try:
        device_id = UUID(username)
    except ValueError:
        return None
    return device_id if str(device_id) == username else None


@router.post("/user")
@_keyed
async def may_log_in(request: Request) -> PlainTextResponse:
    """Say whether a device may log in: its id is the user's name, its token the password."""
    asked = await _asked(request)
    device_id, token = _device(asked), asked.get("password", "")
    if device_id is None or not token:
        return _said(False)
    reception: Reception = request.app.state.reception
    welcome: Welcome | None = request.app.state.welcome_at_broker
    try:
        # The broker does not say where it comes from. Wrong ones count against themselves alone:
        # against the name that is claimed, a stranger could shut the device out.
        source = await reception.login(token, f"amqp {hash_token(token).hex()}")
        if source.device_id != device_id:
            raise Unauthenticated("the token is another device's")
        reception.quotas.check(source)
        if welcome is not None:
            await welcome(source)
        if source.is_revoked:
            # Meanwhile; and what was to be cut then was no connection yet.
            raise Unauthenticated("the device may not go on")
    except AppError as error:
        log.warning("amqp login refused", device=str(device_id), reason=error.detail)
        return _said(False)
    return _said(True)


@router.post("/vhost")
@_keyed
async def may_enter(request: Request) -> PlainTextResponse:
    """Say whether a device may use a virtual host: that of the devices alone."""
    asked = await _asked(request)
    vhost: str = request.app.state.amqp_vhost
    return _said(_device(asked) is not None and asked.get("vhost") == vhost)


@router.post("/resource")
@_keyed
async def may_use_resource(request: Request) -> PlainTextResponse:
    """Say whether a device may use an exchange or a queue."""
    asked = await _asked(request)
    device_id, vhost = _device(asked), request.app.state.amqp_vhost
    return _said(
        device_id is not None
        and asked.get("vhost") == vhost
        and may_use(
            device_id,
            asked.get("resource", ""),
            asked.get("name", ""),
            asked.get("permission", ""),
        )
    )


@router.post("/topic")
@_keyed
async def may_use_topic(request: Request) -> PlainTextResponse:
    """Say whether a device may publish with a routing key."""
    asked = await _asked(request)
    device_id, vhost = _device(asked), request.app.state.amqp_vhost
    return _said(
        device_id is not None
        and asked.get("vhost") == vhost
        and may_say(
            device_id,
            asked.get("name", ""),
            asked.get("permission", ""),
            asked.get("routing_key", ""),
        )
    )
