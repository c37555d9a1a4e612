"""`Idempotency-Key`: a POST that creates may be sent again, and creates once.

A router that creates has `route_class=IdempotentRoute`. Its POSTs that answer 201 take the header.
The door claims the key in the request's transaction (`claim_key`), and when the route has returned
the route class writes the answer into the same transaction: effect and answer commit together, or
neither is. What is raised rolls both back, so errors are not remembered.

The answer may hold a secret that is shown once. So it is sealed with a key made of the
Idempotency-Key and the request, of which the table holds neither (ADR 16).
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from libs.common.auth.permission import principal
from libs.common.auth.principal import Principal
from libs.common.db import idempotency as kept
from libs.common.db.transactions import Store
from libs.common.errors import FieldError, Invalid, Malformed, TooLarge
from libs.common.http.access import Operation, asks_permission

HEADER = "idempotency-key"
REPLAYED = "idempotency-replayed"
MAX_ANSWER_BYTES = 64 * 1024

_ATTEMPT = "iiot.idempotency"
_REPEATABLE = "__repeatable_because__"
_NONCE_BYTES = 12

E = TypeVar("E", bound=Callable[..., object])


class KeyReused(Invalid):
    """The Idempotency-Key stands for another request."""

    title = "Idempotency-Key used for another request"
    slug = "idempotency-key-reused"


class UnsafeRepeat(Exception):
    """An operation creates and cannot be sent again safely, so the service may not start."""


def repeatable(reason: str) -> Callable[[E], E]:
    """Mark an endpoint that creates and takes no Idempotency-Key, and say why twice does no harm."""
    if not reason.strip():
        raise ValueError("say why the operation may be repeated")

    def mark(endpoint: E) -> E:
        setattr(endpoint, _REPEATABLE, reason)
        return endpoint

    return mark


class _Answer(msgspec.Struct, array_like=True):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Replay(Exception):
    """The request was answered before. Raised through the door, so that its transaction ends."""

    def __init__(self, answer: _Answer) -> None:
        self.answer = answer


class _Attempt:
    """A request with a key, from its headers to its answer."""

    def __init__(self, schema: str, who: Principal, key: str, request: bytes) -> None:
        self._schema = schema
        self._tenant_id = who.tenant_id
        caller = who.tenant_id.bytes + who.subject.bytes

        def derived(purpose: bytes) -> bytes:
            # What tells nothing of the key, nor of what is derived for another purpose.
            return hmac.digest(key.encode("ascii"), purpose, "sha256")

        self._key = derived(b"key" + caller)
        self._request = derived(b"request" + caller + request)
        self._seal = AESGCM(derived(b"seal" + caller + request))
        self._session: AsyncSession | None = None

    async def claim(self, session: AsyncSession) -> None:
        """Claim the key within the session's transaction. Raises _Replay and KeyReused."""
        self._session = session
        claimed, sealed = await kept.claim(
            session, self._schema, self._tenant_id, self._key, self._request
        )
        if claimed != self._request:
            raise KeyReused(
                "this Idempotency-Key was sent with another request; take a new one for each",
                errors=[FieldError("Idempotency-Key:", "stands for another request")],
            )
        if sealed is not None:
            opened = self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
            raise _Replay(msgspec.msgpack.decode(opened, type=_Answer))

    async def keep(self, response: Response) -> None:
        """Write the answer into the transaction that claimed the key."""
        if self._session is None:
            raise RuntimeError("the route's transaction did not claim the Idempotency-Key")
        answer = msgspec.msgpack.encode(
            _Answer(response.status_code, response.raw_headers, bytes(response.body))
        )
        if len(answer) > MAX_ANSWER_BYTES:
            raise TooLarge(
                f"the answer is larger than {MAX_ANSWER_BYTES} bytes and cannot be kept for an"
                " Idempotency-Key; nothing was done"
            )
        nonce = os.urandom(_NONCE_BYTES)
        await kept.keep_answer(
            self._session,
            self._schema,
            self._tenant_id,
            self._key,
            nonce + self._seal.encrypt(nonce, answer, None),
        )


async def _read_key(
    request: Request,
    who: Annotated[Principal, Depends(principal)],
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[ -~]*$",
            description=(
                "Makes it safe to send this again: the same key with the same request gets the"
                " first answer again, and nothing is done twice. Take a random one, such as a"
                " UUID, for each thing to create; it is remembered for a day."
            ),
        ),
    ] = None,
) -> None:
    if key is None:
        return
    if len(request.headers.getlist(HEADER)) > 1:
        raise Malformed("there are two Idempotency-Key headers")
    scope = request.scope
    asked = msgspec.msgpack.encode(
        (scope["method"], scope["path"], scope["query_string"], await request.body())
    )
    scope[_ATTEMPT] = _Attempt(request.app.service, who, key, hashlib.sha256(asked).digest())


async def claim_key(request: Request, store: Store) -> None:
    """Claim the request's Idempotency-Key, if it has one, in the store's transaction.

    Every door calls it before it hands the store out. Raises KeyReused; if the request was answered
    before, the route is not entered and the first answer is given again.
    """
    attempt: _Attempt | None = request.scope.get(_ATTEMPT)
    if attempt is not None:
        await attempt.claim(store.session)


class IdempotentRoute(APIRoute):
    """The class of routes in a router that creates: a POST that answers 201 takes a key."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        creates = options.get("status_code") == 201 and "POST" in (options.get("methods") or ())
        if creates and not hasattr(endpoint, _REPEATABLE):
            options["dependencies"] = [*(options.get("dependencies") or ()), Depends(_read_key)]
            responses = options.get("responses") or {}
            options["responses"] = {201: {"headers": _REPLAYED_HEADER}, **responses}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which FastAPI runs before the doors of scope "function" close."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except _Replay as replay:
                return _again(replay.answer)
            attempt: _Attempt | None = request.scope.get(_ATTEMPT)
            if attempt is not None:
                await attempt.keep(response)
            return response

        return answer


_REPLAYED_HEADER = {
    "Idempotency-Replayed": {
        "description": "`true` if this is the first answer to the Idempotency-Key, given again.",
        "schema": {"type": "string", "const": "true"},
    }
}


def _again(answer: _Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = [*answer.headers, (REPLAYED.encode(), b"true")]
    return response


def check_repeats(operations: Sequence[Operation]) -> None:
    """Raise UnsafeRepeat naming every operation that creates and neither takes a key nor is `@repeatable`.

    Nor may it open its transaction before it has asked for the permission: a replay would need none.
    """
    faults = []
    for operation in operations:
        route = operation.route
        if (
            not isinstance(route, APIRoute)
            or (route.status_code, "POST" in operation.methods) != (201, True)
            or hasattr(route.endpoint, _REPEATABLE)
        ):
            continue
        doors = [d.scope == "function" for d in route.dependant.dependencies]
        guards = [asks_permission(d) for d in route.dependant.dependencies]
        if not isinstance(route, IdempotentRoute):
            faults.append(f"{operation.path} ({operation.name}) takes no Idempotency-Key")
        elif True not in doors:
            faults.append(f"{operation.path} ({operation.name}) has no transaction")
        elif True not in guards[: doors.index(True)]:
            faults.append(f"{operation.path} ({operation.name}) opens it before it asks who may")
    if faults:
        raise UnsafeRepeat(", ".join(faults))
