"""Who a token belongs to, while tokens are being revoked."""

import asyncio
from collections.abc import Sequence
from typing import cast
from uuid import UUID, uuid4

import pytest

from libs.common.db.transactions import Transactions
from libs.common.errors import Unauthenticated, Unavailable
from services.ingest.domain.device import Source
from services.ingest.domain.token import hash_token, new_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.sources import Sources
from tests.waiting import until


class FakeTokens:
    """The registry; what it read may reach the caller late."""

    def __init__(self) -> None:
        self.devices: dict[bytes, UUID] = {}
        self.error: Exception | None = None
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.look_gate = asyncio.Event()
        self.look_gate.set()
        self.looks: list[set[UUID]] = []
        """The devices of which was asked whether they may go on."""

    async def let_in(self, sources: Sequence[Source]) -> set[UUID]:
        self.looks.append({source.device_id for source in sources})
        answer = {s.device_id for s in sources if s.token_hash in self.devices}
        await self.look_gate.wait()
        return answer

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


async def test_a_tenant_closed_while_a_token_is_looked_up_stays_out(
    sources: Sources, tokens: FakeTokens
) -> None:
    token, device_id = new_token(), uuid4()
    tokens.devices[hash_token(token)] = device_id
    tokens.gate.clear()
    login = asyncio.create_task(sources.login(token))
    await tokens.asked.wait()
    del tokens.devices[hash_token(token)]
    sources.revoke_tenant(uuid4(), "the tenant is suspended")
    tokens.gate.set()
    with pytest.raises(Unauthenticated):
        await login


async def test_a_closed_tenants_devices_are_revoked_and_no_others(
    sources: Sources, tokens: FakeTokens
) -> None:
    cut: list[UUID] = []
    sources.on_revoked.append(lambda device_id, _: cut.append(device_id))
    known = [await log_in(sources, tokens) for _ in range(3)]
    known[1].tenant_id = known[0].tenant_id
    sources.revoke_tenant(known[0].tenant_id, "the tenant is suspended")
    assert {source.device_id for source in known if source.is_revoked} == set(cut)
    assert set(cut) == {known[0].device_id, known[1].device_id}


async def test_a_device_that_nobody_holds_any_more_is_forgotten(
    sources: Sources, tokens: FakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, let_go = await log_in(sources, tokens), await log_in(sources, tokens)
    left = let_go.device_id
    del let_go
    monkeypatch.setattr("services.ingest.usecases.sources.REMEMBERED_S", 0.0)
    await sources.verify()
    assert tokens.looks == [{kept.device_id}]
    assert left not in tokens.looks[0]


async def test_a_device_that_came_by_another_token_while_it_was_looked_at_goes_on(
    sources: Sources, tokens: FakeTokens
) -> None:
    old, token = new_token(), new_token()
    device_id = uuid4()
    tokens.devices[hash_token(old)] = device_id
    first = await sources.login(old)
    # The word that the token was replaced is lost; the device has the new one already.
    del tokens.devices[hash_token(old)]
    tokens.devices[hash_token(token)] = device_id
    tokens.look_gate.clear()
    verification = asyncio.create_task(sources.verify())
    await until(lambda: bool(tokens.looks), "it was looked")
    second = await sources.login(token)
    tokens.look_gate.set()
    await verification
    assert first.is_revoked
    assert second is not first
    assert not second.is_revoked


async def log_in(sources: Sources, tokens: FakeTokens) -> Source:
    token = new_token()
    tokens.devices[hash_token(token)] = uuid4()
    return await sources.login(token)
