"""Who a token belongs to, while tokens are being revoked."""

import asyncio
from typing import cast
from uuid import UUID, uuid4

import pytest

from libs.common.db.transactions import Transactions
from libs.common.errors import Unauthenticated, Unavailable
from services.ingest.domain.device import Source
from services.ingest.domain.token import hash_token, new_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.sources import Sources


class FakeTokens:
    """The registry; what it read may reach the caller late."""

    def __init__(self) -> None:
        self.devices: dict[bytes, UUID] = {}
        self.error: Exception | None = None
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def source_of(self, token_hash: bytes) -> Source | None:
        device_id = self.devices.get(token_hash)
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return None if device_id is None else Source(device_id, uuid4(), 1, 0, {})


@pytest.fixture
def tokens() -> FakeTokens:
    return FakeTokens()


@pytest.fixture
def sources(tokens: FakeTokens) -> Sources:
    return Sources(tokens, cast(Transactions[IngestStore], None), 4)


async def test_a_device_removed_while_its_token_is_looked_up_stays_out(
    sources: Sources, tokens: FakeTokens
) -> None:
    token, device_id = new_token(), uuid4()
    tokens.devices[hash_token(token)] = device_id
    tokens.gate.clear()
    login = asyncio.create_task(sources.login(token))
    await tokens.asked.wait()
    del tokens.devices[hash_token(token)]
    sources.revoke(device_id, "the device was removed")
    tokens.gate.set()
    with pytest.raises(Unauthenticated):
        await login
    with pytest.raises(Unauthenticated):
        await sources.login(token)


async def test_two_logins_at_once_share_one_object(sources: Sources, tokens: FakeTokens) -> None:
    token, device_id = new_token(), uuid4()
    tokens.devices[hash_token(token)] = device_id
    tokens.gate.clear()
    logins = [asyncio.create_task(sources.login(token)) for _ in range(2)]
    await tokens.asked.wait()
    tokens.gate.set()
    first, second = await asyncio.gather(*logins)
    assert first is second
    sources.revoke(device_id, "the token was replaced")
    assert first.is_revoked


async def test_a_registry_that_is_away_is_no_wrong_token(
    sources: Sources, tokens: FakeTokens
) -> None:
    tokens.error = ConnectionRefusedError()
    with pytest.raises(Unavailable):
        await sources.login(new_token())
