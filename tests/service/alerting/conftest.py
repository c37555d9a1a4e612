"""An alerting service with a mail server and a web server to tell."""

from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest
from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from tests.alarms import (
    Mailbox,
    Plant,
    Receiver,
    mailbox,
    receiver,
    running,
    settings_for,
    shift_clock,
)
from tests.database import DatabaseUrls, PrincipalHeaders


@pytest.fixture
async def post() -> AsyncIterator[Mailbox]:
    async with mailbox() as box:
        yield box


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with receiver() as taker:
        yield taker


@pytest.fixture
async def app(
    database_urls: DatabaseUrls, bus: LocalBus, keys: KeySource, post: Mailbox, web: Receiver
) -> AsyncIterator[FastAPI]:
    """Alerting, running."""
    settings = settings_for(database_urls, mail_port=post.port, hook_port=web.port)
    async with running(settings, bus, keys) as app:
        yield app
    await shift_clock(database_urls, "0")


@pytest.fixture
def a_plant(
    app: FastAPI, bus: LocalBus, principal_headers: PrincipalHeaders
) -> Callable[[], Plant]:
    """Make a tenant."""
    return lambda: Plant(app, principal_headers, bus.publish, uuid4())


@pytest.fixture
def plant(a_plant: Callable[[], Plant]) -> Plant:
    return a_plant()
