"""The live connection: a WebSocket that streams what happens in one's own tenant."""

import asyncio
import contextlib
from collections.abc import Collection
from datetime import datetime
from urllib.parse import urlsplit

import msgspec
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from libs.common.clock import Clock
from libs.common.errors import AppError
from libs.common.http.access import public
from services.gateway.api.deps import bearer_token
from services.gateway.domain.access_token import Access
from services.gateway.domain.live import NEEDS, Request, narrowed
from services.gateway.domain.secret import TICKET_PREFIX
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.live import ENDED, Connection, Live
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

    The credential is a ticket (`?ticket=`, or a subprotocol of that name beside `iiot.v1`) or an
    Authorization header; an access token in the address would end up in logs.
    """
    state = websocket.app.state
    if not _is_own_origin(websocket, state.allowed_origins):
        # Before the connection is accepted, closing is HTTP's 403.
        await websocket.close()
        return
    offered: list[str] = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    live: Live = state.live
    try:
        access = await _access(websocket, offered)
        connection = await _connect(state.callers, access)
        live.join(connection)
    except AppError as error:
        await websocket.close(4000 + error.status, error.detail[:LONGEST_REASON])
        return
    try:
        # Revoked while we looked?
        if state.callers.is_revoked(access.session_id):
            connection.close(ENDED, "the session has ended")
        await _converse(websocket, live, connection, access.expires_at, state.clock)
    finally:
        live.leave(connection)


async def _access(websocket: WebSocket, offered: list[str]) -> Access:
    sessions: Sessions = websocket.app.state.sessions
    ticket = websocket.query_params.get("ticket") or next(
        (name for name in offered if name.startswith(TICKET_PREFIX)), None
    )
    if ticket is not None:
        return await sessions.take_ticket(ticket)
    callers: Callers = websocket.app.state.callers
    caller = await callers.caller(bearer_token(websocket.headers.get("authorization")))
    return caller.access


async def _connect(callers: Callers, access: Access) -> Connection:
    principal = await callers.principal_of(access)
    allowed = frozenset(kind for kind, permission in NEEDS.items() if principal.may(permission))
    return Connection(access.tenant_id, access.user_id, access.session_id, allowed)


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


def _is_own_origin(websocket: WebSocket, allowed: Collection[str]) -> bool:
    """Whether the page that asks is ours; a client that is no browser says nothing."""
    origin = websocket.headers.get("origin")
    if origin is None:
        return True
    return origin in allowed or urlsplit(origin).netloc == websocket.headers.get("host")
