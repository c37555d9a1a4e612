"""Devices that share a secret with us speak OSCORE, whatever else their tenant allows.

The device's half is aiocoap's too: its messages are protected here, and sent by a plain client.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import aiocoap
import pytest
from aiocoap import oscore
from aiocoap.numbers import Code

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from services.ingest.app import build
from services.ingest.protocols.coap.secured import (
    OUR_ID,
    RESERVED_AT_ONCE,
    DeviceContext,
    Secured,
)
from services.ingest.settings import Settings
from tests.database import DatabaseUrls
from tests.service.ingest.conftest import World, running
from tests.waiting import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"coap_host": "127.0.0.1", "coap_port": 0})


@pytest.fixture
async def client() -> AsyncIterator[aiocoap.Context]:
    context = await aiocoap.Context.create_client_context(transports=["simple6"])
    yield context
    await context.shutdown()


class Context(oscore.CanProtect, oscore.CanUnprotect, oscore.SecurityContextUtils):
    """A device's half of the security context."""

    def __init__(self, identity: str, secret: str) -> None:
        self.alg_aead = oscore.algorithms[oscore.DEFAULT_ALGORITHM]
        self.hashfun = oscore.hashfunctions[oscore.DEFAULT_HASHFUNCTION]
        self.id_context = None
        self.sender_id, self.recipient_id = bytes.fromhex(identity), OUR_ID
        self.derive_keys(b"", bytes.fromhex(secret))
        self.recipient_replay_window = oscore.ReplayWindow(32, lambda: None)
        self.recipient_replay_window.initialize_empty()
        self.echo_recovery = None
        self.sender_sequence_number = 0

    def post_seqnoincrease(self) -> None:
        pass


class Device:
    """A device that protects what it says."""

    def __init__(
        self, world: World, client: aiocoap.Context, device_id: UUID, keys: dict[str, str]
    ) -> None:
        self.device_id = device_id
        self.context = Context(keys["identity"], keys["secret"])
        self.challenges = 0
        self.protected: aiocoap.Message | None = None
        self._world = world
        self._client = client

    async def ask(
        self, code: Code, path: str, payload: bytes = b"", **options: object
    ) -> aiocoap.Message:
        """Ask, and ask again with the Echo that a fresh server wants to see."""
        answer = await self._ask_once(code, path, payload, **options)
        if answer.code is Code.UNAUTHORIZED and answer.opt.echo is not None:
            self.challenges += 1
            answer = await self._ask_once(code, path, payload, echo=answer.opt.echo, **options)
        return answer

    async def _ask_once(
        self, code: Code, path: str, payload: bytes, **options: object
    ) -> aiocoap.Message:
        message = aiocoap.Message(code=code, payload=payload, uri_path=tuple(path.split("/")))
        for name, value in options.items():
            setattr(message.opt, name, value)
        self.protected, request_id = self.context.protect(message)
        answer = await self.send(self.protected)
        opened, _ = self.context.unprotect(answer, request_id)
        return opened

    async def send(self, protected: aiocoap.Message) -> aiocoap.Message:
        """Send a message as it is."""
        protected = protected.copy(mid=None)
        protected.token = b""
        protected.set_request_uri(f"coap://127.0.0.1:{self._world.app.state.coap_port}")
        return await asyncio.wait_for(self._client.request(protected).response, 20)

    async def observe(self, path: str) -> AsyncGenerator[aiocoap.Message]:
        """Yield what is said of what is observed, the first answer too."""
        message = aiocoap.Message(code=Code.GET, observe=0, uri_path=tuple(path.split("/")))
        protected, request_id = self.context.protect(message)
        protected.set_request_uri(f"coap://127.0.0.1:{self._world.app.state.coap_port}")
        request = self._client.request(protected)
        first = await asyncio.wait_for(request.response, 20)
        yield self.context.unprotect(first, request_id)[0]
        async for notification in request.observation:
            yield self.context.unprotect(notification, request_id)[0]


async def following(said: AsyncGenerator[aiocoap.Message]) -> aiocoap.Message:
    return await anext(said)


async def give_keys(world: World, device_id: UUID) -> dict[str, str]:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/credentials", json={"kind": "oscore"}, headers=world.headers
    )
    assert answer.status_code == 201, answer.text
    keys: dict[str, str] = answer.json()
    return keys


async def used(world: World, device: Device) -> int:
    """Up to which of our sequence numbers have been given out."""
    [row] = await world.query(
        "SELECT used FROM ingest.oscore_sequences WHERE device_id = $1", device.device_id
    )
    return int(row["used"])


@pytest.fixture
async def device(world: World, client: aiocoap.Context) -> Device:
    device_id, _ = await world.device()
    return Device(world, client, device_id, await give_keys(world, device_id))


async def test_a_device_speaks_oscore_where_plain_coap_is_not_allowed(
    world: World, device: Device
) -> None:
    for value in range(3):
        answer = await device.ask(Code.POST, "v1/telemetry", b'{"temp": %d}' % value)
        assert answer.code is Code.CHANGED, answer.payload
    assert device.challenges == 1
    points = await world.until_stored(device.device_id, 3)
    assert [value for _, _, value in points] == [0.0, 1.0, 2.0]


async def test_a_recorded_message_that_is_sent_again_is_refused(
    world: World, device: Device
) -> None:
    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    assert device.protected is not None
    answer = await device.send(device.protected)
    assert (answer.code, answer.payload) == (Code.UNAUTHORIZED, b"Replay detected")
    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 2}')
    assert len(await world.until_stored(device.device_id, 2)) == 2


async def test_after_a_restart_a_recorded_message_is_challenged_and_the_device_goes_on(
    settings: Settings,
    keys: KeySource,
    database_urls: DatabaseUrls,
    world: World,
    device: Device,
) -> None:
    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    recorded = device.protected
    assert recorded is not None
    before = await used(world, device)
    bus = LocalBus(database_urls.bus, SystemClock())
    later = build(settings, bus, SystemClock(), keys=keys)
    async with running(later, bus, database_urls, world.tenant_id, world.headers) as restarted:
        device._world = restarted
        answer = await device.send(recorded)
        assert answer.code is Code.CHANGED, "the outside of a protected challenge"
        answer = await device.ask(Code.POST, "v1/telemetry", b'{"temp": 2}')
        assert answer.code is Code.CHANGED
        assert device.challenges == 2
        points = await restarted.until_stored(device.device_id, 2)
        assert [value for _, _, value in points] == [1.0, 2.0]
    assert await used(world, device) >= before + RESERVED_AT_ONCE, "numbers of its own"


async def test_numbers_that_a_restored_database_forgot_are_not_given_out_again(
    world: World,
) -> None:
    device_id, _ = await world.device()
    noon = datetime(2026, 12, 1, 12, tzinfo=UTC)

    async def reserve(at: datetime) -> int:
        async with world.app.state.transactions.begin(world.tenant_id) as store:
            first: int = await store.sequences.reserve(device_id, "ab", RESERVED_AT_ONCE, at=at)
            return first

    assert await reserve(noon) + RESERVED_AT_ONCE == await reserve(noon)
    given_out = await reserve(noon) + RESERVED_AT_ONCE
    await world.query("DELETE FROM ingest.oscore_sequences WHERE device_id = $1", device_id)
    assert await reserve(noon + timedelta(minutes=1)) >= given_out


async def test_what_is_wrong_is_said_under_protection(world: World, device: Device) -> None:
    answer = await device.ask(Code.POST, "v1/telemetry", b"no json", content_format=50)
    assert answer.code is Code.BAD_REQUEST
    assert b"not JSON" in answer.payload
    assert (await device.ask(Code.GET, "v1/nothing")).code is Code.NOT_FOUND


async def test_another_secret_and_another_identity_are_refused(
    world: World, client: aiocoap.Context, device: Device
) -> None:
    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    known = device.context.sender_id.hex()
    for identity, code, reason in (
        (known, Code.BAD_REQUEST, b"Decryption failed"),
        ("00" * 7, Code.UNAUTHORIZED, b"Security context not found"),
    ):
        stranger = Device(
            world, client, device.device_id, {"identity": identity, "secret": "00" * 16}
        )
        message = aiocoap.Message(
            code=Code.POST, payload=b'{"temp": 2}', uri_path=("v1", "telemetry")
        )
        answer = await stranger.send(stranger.context.protect(message)[0])
        assert (answer.code, answer.payload) == (code, reason)
    assert len(await world.until_stored(device.device_id, 1)) == 1


async def test_a_withdrawn_secret_is_void_within_five_seconds(world: World, device: Device) -> None:
    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    await world.http.delete(f"/api/v1/devices/{device.device_id}", headers=world.headers)

    async def is_out() -> bool:
        message = aiocoap.Message(
            code=Code.POST, payload=b'{"temp": 2}', uri_path=("v1", "telemetry")
        )
        answer = await device.send(device.context.protect(message)[0])
        return bool(answer.code is Code.UNAUTHORIZED)

    await until(is_out, "shut out", within_s=5)


async def test_commands_are_observed_under_protection(world: World, device: Device) -> None:
    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    said = device.observe("v1/commands")
    assert (await anext(said)).payload == b""
    answer = await world.http.post(
        f"/api/v1/devices/{device.device_id}/commands",
        json={"name": "start", "params": {}},
        headers=world.headers,
    )
    notification = await asyncio.wait_for(anext(said), 20)
    command = json.loads(notification.payload)
    assert (command["id"], command["name"]) == (answer.json()["id"], "start")
    answer = await device.ask(
        Code.POST, f"v1/commands/{command['id']}/reply", b'{"status": "succeeded"}'
    )
    assert answer.code is Code.CHANGED, answer.payload
    await said.aclose()


def secured_of(world: World) -> Secured:
    secured: Secured = world.app.state.coap.site._secured
    return secured


def run_out(world: World, device: Device) -> DeviceContext:
    """Leave our half of a device's context without a sequence number."""
    context = secured_of(world)._contexts[device.context.sender_id]
    context.sender_sequence_number, context._next = context._end, None
    return context


async def test_a_device_gets_its_command_as_soon_as_there_are_sequence_numbers_again(
    world: World, device: Device
) -> None:
    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    said = device.observe("v1/commands")
    await anext(said)
    context = run_out(world, device)
    answer = await world.http.post(
        f"/api/v1/devices/{device.device_id}/commands",
        json={"name": "start", "params": {}},
        headers=world.headers,
    )
    await until(lambda: context.sender_sequence_number < context._end, "numbers reserved")
    notification = asyncio.ensure_future(following(said))

    async def is_told() -> bool:
        await world.app.state.dispatcher.look()
        return notification.done()

    await until(is_told, "the command")
    assert json.loads(notification.result().payload)["id"] == answer.json()["id"]
    await said.aclose()


async def test_the_latest_values_are_notified_as_soon_as_there_are_sequence_numbers_again(
    world: World, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DeviceContext] = []

    async def away(context: DeviceContext) -> None:
        asked.append(context)
        raise Unavailable("the database is away")

    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    said = device.observe("v1/latest")
    await anext(said)
    context = run_out(world, device)
    with monkeypatch.context() as patch:
        patch.setattr(secured_of(world), "_reserve", away)
        await device.ask(Code.POST, "v1/telemetry", b'{"temp": 2}')
        await until(lambda: bool(asked), "numbers were asked for")
    notification = await asyncio.wait_for(following(said), 20)
    assert json.loads(notification.payload)["temp"]["value"] == 2.0
    assert context.sender_sequence_number < context._end
    await said.aclose()


async def test_a_removed_device_is_cut_though_nothing_can_be_told_to_it(
    world: World, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: DeviceContext) -> None:
        raise Unavailable("the database is away")

    await device.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
    said = device.observe("v1/commands")
    await anext(said)
    run_out(world, device)
    monkeypatch.setattr(secured_of(world), "_reserve", away)
    world.app.state.sources.revoke(device.device_id, "the device was removed")
    site = world.app.state.coap.site
    await until(lambda: not site._observers, "the observation is over")
    assert device.device_id not in world.app.state.dispatcher._ways
    assert device.device_id not in secured_of(world)._of_device
    await said.aclose()


async def test_of_devices_whose_keys_made_room_nothing_is_kept(
    world: World, client: aiocoap.Context, device: Device
) -> None:
    secured_of(world)._most = 1
    device_id, _ = await world.device()
    other = Device(world, client, device_id, await give_keys(world, device_id))
    for one in (device, other):
        answer = await one.ask(Code.POST, "v1/telemetry", b'{"temp": 1}')
        assert answer.code is Code.CHANGED
    assert secured_of(world)._of_device == {device_id: {other.context.sender_id}}
