"""Identity providers that a plant has of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from deploy.local.processes import free_port
from tests.directory import Directory
from tests.service.tenancy.sign_on.oidc_provider import OidcProvider
from tests.waiting import until


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    """A directory under TLS."""
    server = Directory(tmp_path_factory.mktemp("slapd"))
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def serving(provider: OidcProvider) -> AsyncIterator[OidcProvider]:
    """Serve an OpenID provider on loopback."""
    port = free_port()
    provider.issuer = f"http://127.0.0.1:{port}"
    config = uvicorn.Config(
        provider.app, host="127.0.0.1", port=port, log_level="error", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    serve = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the provider serves")
    try:
        yield provider
    finally:
        server.should_exit = True
        await serve


@pytest.fixture
async def provider() -> AsyncIterator[OidcProvider]:
    """An OpenID provider that lets Ann in."""
    async with serving(OidcProvider()) as provider:
        yield provider
