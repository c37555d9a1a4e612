"""Who a token belongs to, while tokens are being revoked."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import cast
from uuid import UUID, uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.db.transactions import Transactions
from libs.common.errors import Unauthenticated, Unavailable
from services.ingest.domain.credential import CredentialKind, Proof
from services.ingest.domain.device import Source
from services.ingest.domain.token import hash_token, new_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.sources import Sources
from tests.waiting import until


class FakeTokens:
    """The registry; what it read may reach the caller late."""

    def __init__(self) -> None:
        self.devices: dict[bytes, UUID] = {}
        self.ids: dict[bytes, UUID] = {}
        self.ends: dict[bytes, datetime] = {}
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
        answer = {
            source.device_id
            for source in sources
            if all(shown in self.devices for _, shown in source.proofs)
        }
        await self.look_gate.wait()
        return answer

    async def source_of(
        self, kind: CredentialKind, shown: bytes, named: UUID | None = None
    ) -> Source | None:
        device_id = self.devices.get(shown)
        ends_at = self.ends.get(shown)
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if device_id is None:
            return None
        proofs = {(kind, shown): Proof(self.ids.setdefault(shown, uuid4()), ends_at)}
        return Source(device_id, uuid4(), 1, 0, {}, proofs)

    async def secret_of(
        self, kind: CredentialKind, shown: bytes
    ) -> tuple[Source, UUID, bytes] | None:
        source = await self.source_of(kind, shown)
        return None if source is None else (source, self.ids[shown], b"sealed")


@pytest.fixture
def tokens() -> FakeTokens:
    return FakeTokens()


@pytest.fixture
def clock() -> SystemClock:
    return SystemClock()


@pytest.fixture
def sources(tokens: FakeTokens, clock: SystemClock) -> Sources:
    return Sources(tokens, cast(Transactions[IngestStore], None), 4, clock)


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
    login = asyncio.create_task(sources.login(token))
    await until(lambda: len(tokens.looks) == 2, "it was looked whether it has the old one still")
    tokens.look_gate.set()
    second = await login
    await verification
    assert first.is_revoked
    assert second is not first
    assert not second.is_revoked


async def test_who_comes_again_and_again_is_looked_up_with_all_others_alone(
    sources: Sources, tokens: FakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, elapsed_s = asyncio.get_running_loop(), 0.0
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + elapsed_s)
    often, once = new_token(), new_token()
    for token in (often, once):
        tokens.devices[hash_token(token)] = uuid4()
    first, seldom = await sources.login(often), await sources.login(once)
    tokens.asked.clear()
    for _ in range(5):
        assert await sources.login(often) is first
        elapsed_s += 30
        await sources.verify()
    assert await sources.login(often) is first
    assert not tokens.asked.is_set()
    # Who came once is forgotten, so that what is looked up does not grow for ever.
    assert tokens.looks[-1] == {first.device_id, seldom.device_id}
    await sources.login(once)
    assert tokens.asked.is_set()
    # And who is void is out, however often he comes.
    tokens.devices.clear()
    await sources.verify()
    with pytest.raises(Unauthenticated):
        await sources.login(often)


async def log_in(sources: Sources, tokens: FakeTokens) -> Source:
    token = new_token()
    tokens.devices[hash_token(token)] = uuid4()
    return await sources.login(token)
