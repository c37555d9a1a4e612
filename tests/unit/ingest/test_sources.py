"""Who a token belongs to, while tokens are being revoked."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.db.transactions import Transactions
from libs.common.errors import Unauthenticated, Unavailable
from libs.common.historian.point import Kind
from libs.common.quotas.terms import UNLIMITED, Resource, Terms
from services.ingest.domain.credential import CredentialKind, Proof
from services.ingest.domain.device import Series, Source
from services.ingest.domain.profile import Profile
from services.ingest.domain.token import hash_token, new_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.profiles import ProfilesInUse
from services.ingest.usecases.sources import Sources
from tests.waiting import until


class FakeTokens:
    """The registry; what it read may reach the caller late."""

    def __init__(self) -> None:
        self.devices: dict[bytes, UUID] = {}
        self.ids: dict[bytes, UUID] = {}
        self.ends: dict[bytes, datetime] = {}
        self.tenants: dict[bytes, UUID] = {}
        self.profiles: dict[bytes, Profile] = {}
        self.found = 0
        """How many look-ups have begun."""
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
        ends_at, profile = self.ends.get(shown), self.profiles.get(shown)
        tenant_id = self.tenants.setdefault(shown, uuid4())
        self.found += 1
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if device_id is None:
            return None
        proofs = {(kind, shown): Proof(self.ids.setdefault(shown, uuid4()), ends_at)}
        return Source(device_id, tenant_id, 1, 0, {}, proofs, profile=profile)

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
    sources.revoke_tenant(tokens.tenants[hash_token(token)], "the tenant is suspended")
    tokens.gate.set()
    with pytest.raises(Unauthenticated):
        await login


@pytest.mark.parametrize("told_of", ["the profile", "the device", "nothing, for the bus was away"])
async def test_a_profile_that_changes_while_a_token_is_looked_up_is_the_new_one(
    sources: Sources, tokens: FakeTokens, told_of: str
) -> None:
    profiles = ProfilesInUse(sources, cast(Transactions[IngestStore], None))
    token, device_id, profile_id = new_token(), uuid4(), uuid4()
    tokens.devices[hash_token(token)] = device_id
    tokens.profiles[hash_token(token)] = Profile(profile_id, version=1)
    tokens.gate.clear()
    login = asyncio.create_task(sources.login(token))
    await tokens.asked.wait()
    tokens.profiles[hash_token(token)] = Profile(profile_id, version=2)
    # The device is not known yet, so that there is nobody to read it anew for.
    tenant_id = tokens.tenants[hash_token(token)]
    if told_of == "the profile":
        await profiles.profile_changed(tenant_id, profile_id)
    elif told_of == "the device":
        await profiles.device_changed(tenant_id, device_id)
    else:
        await profiles.read_again()
    tokens.gate.set()
    source = await login
    assert source.profile is not None
    assert source.profile.version == 2


async def test_a_login_is_not_held_up_by_what_changes_of_others(
    sources: Sources, tokens: FakeTokens
) -> None:
    token = new_token()
    tokens.devices[hash_token(token)] = uuid4()
    tokens.gate.clear()
    login = asyncio.create_task(sources.login(token))
    await tokens.asked.wait()
    sources.changed(uuid4())
    sources.revoke(uuid4(), "the device was removed")
    sources.revoke_tenant(uuid4(), "the tenant is suspended")
    tokens.gate.set()
    await login
    assert tokens.found == 1


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


class FakeQuotas:
    """The quotas of a tenant of whose plan nothing was ever said."""

    async def of(self, resource: Resource) -> Terms:
        return UNLIMITED


@dataclass(slots=True)
class FakeStore:
    """The registry of one device, in a transaction that goes on as long as the gate is shut."""

    device: Source
    open: int = 0
    begun: int = 0
    most_open: int = 0
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    quotas: FakeQuotas = field(default_factory=FakeQuotas)

    @property
    def devices(self) -> "FakeStore":
        return self

    @property
    def tenant(self) -> "FakeStore":
        return self

    async def is_closed(self) -> bool:
        return False

    async def source(self, device_id: UUID, shards: int) -> Source:
        device = self.device
        return Source(device.device_id, device.tenant_id, device.tenant, device.shard, {})

    async def series(
        self, device_id: UUID, tenant: int, kinds: dict[str, int], units: dict[str, str]
    ) -> dict[str, Series]:
        await self.gate.acquire()
        return {metric: Series(1, kind) for metric, kind in kinds.items()}

    @asynccontextmanager
    async def begin(self, tenant_id: UUID) -> AsyncIterator[Any]:
        self.begun += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            yield self
        finally:
            self.open -= 1


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(Source(uuid4(), uuid4(), 1, 0, {}))


@pytest.fixture
def of_store(tokens: FakeTokens, store: FakeStore, clock: SystemClock) -> Sources:
    return Sources(tokens, cast(Transactions[IngestStore], store), 4, clock)


async def test_messages_that_race_for_the_last_metric_do_not_both_find_room(
    of_store: Sources, store: FakeStore
) -> None:
    source = store.device

    def register(metric: str) -> "asyncio.Task[None]":
        return asyncio.create_task(of_store.register(source, {metric: Kind.NUMBER}, {}, 2))

    first, second = register("a"), register("b")
    await until(lambda: store.begun == 1, "the first asks")
    third: list[asyncio.Task[None]] = []
    # In the very moment when the first is done, and the second, who waited, has not begun.
    first.add_done_callback(lambda _: third.append(register("c")))
    store.gate.release()
    await first
    await until(lambda: store.begun == 2, "the second asks")
    store.gate.release()
    store.gate.release()
    await asyncio.gather(second, *third)
    assert store.most_open == 1
    assert source.series.keys() == {"a", "b"}


async def test_a_device_in_whose_name_others_speak_is_the_same_one_the_next_time(
    of_store: Sources, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id, device_id = store.device.tenant_id, store.device.device_id
    source = await of_store.of_tenant(tenant_id, device_id)
    source.last_seq = 7
    del source
    source = await of_store.of_tenant(tenant_id, device_id)
    assert (source.last_seq, store.begun) == (7, 1)
    del source
    # As long as it speaks now and then; what is remembered does not grow for ever.
    monkeypatch.setattr("services.ingest.usecases.sources.REMEMBERED_S", 0.0)
    await of_store.verify()
    assert of_store.known(device_id) is None


async def test_those_in_whose_name_others_speak_are_remembered_up_to_a_bound(
    of_store: Sources, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ingest.usecases.sources.REMEMBERED", 3)
    for _ in range(10):
        store.device = Source(uuid4(), store.device.tenant_id, 1, 0, {})
        await of_store.of_tenant(store.device.tenant_id, store.device.device_id)
    assert len(of_store.known_of(store.device.tenant_id)) == 3


async def test_a_protocol_that_fails_to_cut_a_device_keeps_no_other_from_cutting_it(
    sources: Sources, tokens: FakeTokens
) -> None:
    cut: list[UUID] = []

    def fail(device_id: UUID, reason: str) -> None:
        raise RuntimeError("a fault of ours")

    sources.on_revoked += [fail, lambda device_id, _: cut.append(device_id)]
    device = await log_in(sources, tokens)
    sources.revoke(device.device_id, "the device was removed")
    assert cut == [device.device_id]
