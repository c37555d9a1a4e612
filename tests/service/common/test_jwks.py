"""The gateway's public keys, as the services fetch them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from libs.common.auth import jwks
from libs.common.auth.jwks import JwksKeys
from libs.common.auth.principal import Principal, PrincipalSigner, PrincipalVerifier
from libs.common.errors import Unauthenticated, Unavailable
from libs.common.http.bounds import Bounds
from libs.common.http.server import ServerConfig
from tests.waiting import until

KEY = ec.generate_private_key(ec.SECP256R1())


class Publisher:
    """A gateway that publishes one key, or fails."""

    def __init__(self) -> None:
        self.is_failing = False
        self.url = ""

    async def answer(self, _request: Request) -> JSONResponse:
        """Answer for the document."""
        if self.is_failing:
            return JSONResponse({}, 503)
        key = {**ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "known"}
        return JSONResponse({"keys": [key]})


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    """A gateway to fetch from."""
    publisher = Publisher()
    app = Starlette(routes=[Route("/jwks.json", publisher.answer)])
    server = uvicorn.Server(ServerConfig(app, Bounds(), lifespan="off", drain_s=1))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the gateway listens")
    publisher.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/jwks.json"
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, server, "should_exit", True)
        yield publisher
    await serving


def signed_by(kid: str) -> str:
    """Return a principal's token."""
    principal = Principal(subject=uuid4(), tenant_id=uuid4())
    return PrincipalSigner(KEY, kid).sign(principal, datetime.now(UTC))


async def test_a_key_that_the_gateway_has_not_is_no_proof(publisher: Publisher) -> None:
    verifier = PrincipalVerifier(JwksKeys(publisher.url))
    await verifier.verify(signed_by("known"))
    with pytest.raises(Unauthenticated):
        await verifier.verify(signed_by("forged"))


async def test_while_the_keys_cannot_be_fetched_nobody_is_told_that_they_are_logged_out(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.is_failing = True
    verifier = PrincipalVerifier(JwksKeys(publisher.url))
    # Once it was asked, and once it is too soon to ask again.
    for _ in range(2):
        with pytest.raises(Unavailable):
            await verifier.verify(signed_by("known"))
    publisher.is_failing = False
    monkeypatch.setattr(jwks, "REFETCH_S", 0)
    await verifier.verify(signed_by("known"))


async def test_known_keys_are_good_while_the_gateway_is_away(publisher: Publisher) -> None:
    verifier = PrincipalVerifier(JwksKeys(publisher.url))
    await verifier.verify(signed_by("known"))
    publisher.is_failing = True
    await verifier.verify(signed_by("known"))
