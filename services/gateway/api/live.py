"""The live connection: a WebSocket that streams what happens in one's own tenant."""

import asyncio
import contextlib
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from libs.common.auth.api_key import is_api_key
from libs.common.auth.principal import Principal
from libs.common.clock import Clock
from libs.common.errors import AppError, Forbidden
from libs.common.http.access import public
from services.gateway.api.deps import bearer_token, credential
from services.gateway.domain.live import NEEDS, Request, narrowed
from services.gateway.domain.secret import TICKET_PREFIX
from services.gateway.usecases.api_keys import ApiKeys
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.live import ENDED, Connection, Live
from services.gateway.usecases.origins import Origins
from services.gateway.usecases.sessions import Sessions

router = APIRouter()

PROTOCOL = "iiot.v1"
CLOSE_WITHIN_S = 5.0
LONGEST_REASON = 123
"""Bytes, by RFC 6455."""
UNSUPPORTED = 1003

_read_request = msgspec.json.Decoder(Request).decode


@router.websocket("/api/v1/ws")
@public("it asks for a ticket or an access token itself, and closes with 4401 without")
async def stream(websocket: WebSocket) -> None:
    """Stream telemetry, devices and alerts of the caller's tenant, as far as they may read them.

    The credential is a ticket (`?ticket=`, or a subprotocol of that name beside `iiot.v1`), or an
    access token or API key in a header; in the address they would end up in logs.
    """
    state = websocket.app.state
    if not _may_open(websocket, state.origins):
        # Before the connection is accepted, closing is HTTP's 403.
        await websocket.close()
        return
    offered: list[str] = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    live: Live = state.live
    try:
        connection, until = await _open(websocket, offered)
        if not _may_open(websocket, state.origins, connection.tenant_id):
            raise Forbidden("this site may not act in the name of the tenant's users")
        live.join(connection)
    except AppError as error:
        await websocket.close(4000 + error.status, error.detail[:LONGEST_REASON])
        return
    try:
        # Revoked while we looked?
        if state.callers.is_revoked(connection.session_id):
            connection.close(ENDED, "the session has ended")
        await _converse(websocket, live, connection, until, state.clock)
    finally:
        live.leave(connection)


async def _open(websocket: WebSocket, offered: list[str]) -> tuple[Connection, datetime]:
    """Return the connection of whoever asks, and when it ends at the latest."""
    state, headers = websocket.app.state, websocket.headers
    sessions: Sessions = state.sessions
    callers: Callers = state.callers
    api_keys: ApiKeys = state.api_keys
    ticket = websocket.query_params.get("ticket") or next(
        (name for name in offered if name.startswith(TICKET_PREFIX)), None
    )
    if ticket is None:
        token = bearer_token(
            credential(headers.getlist("authorization"), headers.getlist("x-api-key"))
        )
        if is_api_key(token):
            program = await api_keys.caller(token, websocket.state.address)
            # A key is its own user, and its own session: what it has open ends with it.
            end = program.key.good_until or datetime.max.replace(tzinfo=UTC)
            return _connection(program.principal, program.key.key_id), end
        access = (await callers.caller(token)).access
    else:
        access = await sessions.take_ticket(ticket)
    principal = await callers.principal_of(access)
    return _connection(principal, access.session_id), access.expires_at


def _connection(principal: Principal, session_id: UUID) -> Connection:
    allowed = frozenset(kind for kind, permission in NEEDS.items() if principal.may(permission))
    return Connection(principal.tenant_id, principal.subject, session_id, allowed, principal.groups)


async def _converse(
    websocket: WebSocket, live: Live, connection: Connection, until: datetime, clock: Clock
) -> None:
    """Send and receive until one side has enough; then close with the reason."""
    tasks = [
        asyncio.create_task(_send(websocket, connection), name="live.send"),
        asyncio.create_task(_receive(websocket, live, connection), name="live.receive"),
        asyncio.create_task(_expire(connection, until, clock), name="live.expire"),
        asyncio.create_task(_until_closed(connection), name="live.closed"),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if connection.closed.done():
        code, reason = connection.closed.result()
        # One who reads nothing does not read this either.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await websocket.close(code, reason)


async def _send(websocket: WebSocket, connection: Connection) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            frame = await connection.next()
            await websocket.send_text(frame.decode())


async def _receive(websocket: WebSocket, live: Live, connection: Connection) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            connection.close(UNSUPPORTED, "send text")
            return
        connection.offer(_answer(text, live, connection))


def _answer(text: str, live: Live, connection: Connection) -> bytes:
    try:
        request = _read_request(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        return msgspec.json.encode({"type": "error", "detail": str(error)})
    live.subscribe(connection, narrowed(request.subscribe, connection.allowed))
    return msgspec.json.encode(
        {
            "type": "subscribed",
            "devices": request.subscribe.devices,
            "types": sorted(connection.interest.kinds),
        }
    )


async def _until_closed(connection: Connection) -> None:
    await asyncio.shield(connection.closed)


async def _expire(connection: Connection, until: datetime, clock: Clock) -> None:
    """Close the connection at the time; looked at often, because tests move the clock."""
    while (left_s := (until - clock.now()).total_seconds()) > 0:  # noqa: ASYNC110 - a time comes by itself
        await asyncio.sleep(min(left_s, 5.0))
    connection.close(ENDED, "the session has ended")


def _may_open(websocket: WebSocket, origins: Origins, tenant_id: UUID | None = None) -> bool:
    """Whether the page that asks is ours, or of a site that may; a client that is no browser says nothing."""
    origin = websocket.headers.get("origin")
    if origin is None:
        return True
    is_ours = urlsplit(origin).netloc == websocket.headers.get("host")
    return is_ours or origins.may_ask(origin, tenant_id)
