"""Registers the station with the platform, once: devices with their credentials, and the demo rule.

What the platform shows only once, the tokens, is kept in a state file that only its owner may read.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self, TypeVar
from uuid import uuid4

import httpx2
import msgspec

from clients.simulator.devices.device import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")


class PlatformRefused(Exception):
    """The platform answered, and the answer was no."""


class Credential(msgspec.Struct, frozen=True):
    """What a device needs to speak: its id is its user name, the token its password."""

    id: str
    token: str

    def __repr__(self) -> str:
        return f"Credential(id={self.id!r}, token=…)"


class State(msgspec.Struct):
    """The content of the state file."""

    devices: dict[str, Credential] = {}
    version: int = 1


def read_state(path: Path) -> State:
    """Return the kept state; an absent or unreadable file is an empty one.

    Losing the file costs a rotation of each credential, no more.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        log.warning("the state file %s is not readable and will be replaced: %s", path, error)
        return State()


def write_state(path: Path, state: State) -> None:
    """Replace the file in one move; at no moment can anyone but its owner read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state)))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class _Token(msgspec.Struct):
    token: str


class _Login(msgspec.Struct):
    access_token: str


class _Created(msgspec.Struct):
    id: str
    credentials: _Token


class _Rotated(msgspec.Struct):
    """A rotation answers with the token, alone or as the creation does."""

    token: str | None = None
    credentials: _Token | None = None


class _Listed(msgspec.Struct):
    id: str
    name: str


class _Rule(msgspec.Struct):
    name: str
    device_id: str | None = None


class _Devices(msgspec.Struct):
    items: list[_Listed]
    next_cursor: str | None = None


class _Rules(msgspec.Struct):
    items: list[_Rule]
    next_cursor: str | None = None


class Platform:
    """The few calls of the platform's API that a station needs, as one user.

    While the platform is not there yet (no connection, 502, 503, 504) a call is tried again for
    `patience` seconds; then, and on every other refusal, it raises PlatformRefused.
    """

    def __init__(self, url: str, email: str, password: str, *, patience: float = 120.0) -> None:
        self._email = email
        self._password = password
        self._patience = patience
        self._client = httpx2.AsyncClient(base_url=url, timeout=20.0, trust_env=False)

    async def __aenter__(self) -> Self:
        try:
            await self._log_in()
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def devices(self) -> dict[str, str]:
        """Return name -> id of every device of the tenant."""
        found: dict[str, str] = {}
        cursor: str | None = None
        while True:
            page = await self._page("/api/v1/devices", cursor, _Devices)
            found |= {device.name: device.id for device in page.items}
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def create_device(self, name: str, kind: str) -> Credential:
        """Register a device."""
        created = await self._post("/api/v1/devices", {"name": name, "type": kind}, _Created)
        return Credential(created.id, created.credentials.token)

    async def rotate_credential(self, device_id: str) -> Credential:
        """Replace a device's token; the old one ends."""
        rotated = await self._post(f"/api/v1/devices/{device_id}/credentials", None, _Rotated)
        token = rotated.credentials.token if rotated.credentials else rotated.token
        if not token:
            raise PlatformRefused("a rotated credential came without its token")
        return Credential(device_id, token)

    async def rules(self) -> list[tuple[str, str | None]]:
        """Return (name, device id) of every rule of the tenant."""
        found: list[tuple[str, str | None]] = []
        cursor: str | None = None
        while True:
            page = await self._page("/api/v1/rules", cursor, _Rules)
            found += [(rule.name, rule.device_id) for rule in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def create_rule(self, rule: Mapping[str, object]) -> None:
        """Create a rule."""
        await self._post("/api/v1/rules", rule, msgspec.Raw)

    async def _log_in(self) -> None:
        login = {"email": self._email, "password": self._password}
        response = await self._ask("POST", "/api/v1/auth/login", login)
        token = _read(response, _Login).access_token
        self._client.headers["authorization"] = f"Bearer {token}"

    async def _page(self, path: str, cursor: str | None, kind: type[T]) -> T:
        query = {"limit": "200"} | ({"cursor": cursor} if cursor else {})
        return _read(await self._ask("GET", f"{path}?{httpx2.QueryParams(query)}"), kind)

    async def _post(self, path: str, body: Mapping[str, object] | None, kind: type[T]) -> T:
        return _read(await self._ask("POST", path, body), kind)

    async def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> httpx2.Response:
        """Send a request until it is answered; one key for all attempts, so that it acts once."""
        headers = {"idempotency-key": str(uuid4())} if method == "POST" else {}
        backoff = Backoff(Random(), first=0.2, longest=3.0)
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                response = await self._client.request(method, path, json=body, headers=headers)
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
            else:
                if response.status_code not in (502, 503, 504):
                    return response
                problem = f"HTTP {response.status_code}"
            if asyncio.get_running_loop().time() > deadline:
                raise PlatformRefused(f"{method} {path}: {problem}")
            await asyncio.sleep(backoff.delay())


def _read(response: httpx2.Response, kind: type[T]) -> T:
    request = f"{response.request.method} {response.request.url.path}"
    if not response.is_success:
        raise PlatformRefused(f"{request}: HTTP {response.status_code} {response.text[:300]}")
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.MsgspecError as error:
        raise PlatformRefused(f"{request}: {error}") from error


AT_ONCE = 8
"""Devices registered at a time."""
SAVED_EVERY_S = 1.0


async def enrol(
    platform: Platform,
    devices: Mapping[str, str],
    path: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Credential]:
    """Make sure that each device (name -> type) is registered and return its credential.

    Safe to repeat: a device whose kept credential belongs to it is left alone, one that exists
    without a kept credential is rotated, one that does not exist is created. The state is written
    every second and at the end, however that comes: what a crash loses is rotated next time.
    `on_progress` is told how many are done, of how many.
    """
    loop = asyncio.get_running_loop()
    state = read_state(path)
    existing = await platform.devices()
    missing = [name for name in devices if not _is_kept(state, existing, name)]
    saved = loop.time()

    async def work_off() -> None:
        nonlocal saved
        while missing:
            name = missing.pop()
            device_id = existing.get(name)
            state.devices[name] = (
                await platform.create_device(name, devices[name])
                if device_id is None
                else await platform.rotate_credential(device_id)
            )
            if loop.time() - saved > SAVED_EVERY_S:
                saved = loop.time()
                write_state(path, state)
                if on_progress is not None:
                    on_progress(len(devices) - len(missing), len(devices))

    if missing:
        missing.reverse()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work_off())
        except* PlatformRefused as refused:
            raise refused.exceptions[0] from None
        finally:
            write_state(path, state)
    return {name: state.devices[name] for name in devices}


def _is_kept(state: State, existing: Mapping[str, str], name: str) -> bool:
    kept = state.devices.get(name)
    return kept is not None and existing.get(name) == kept.id


async def ensure_demo_rule(platform: Platform, device: str, device_id: str) -> bool:
    """Create the rule that watches the pump's bearing, unless it exists; say whether it was created."""
    name = f"{device} bearing runs hot"
    if (name, device_id) in await platform.rules():
        return False
    await platform.create_rule(
        {
            "name": name,
            "type": "threshold",
            "device_id": device_id,
            "metric": "bearing_temperature",
            "condition": {"operator": "gt", "value": 90, "clear_value": 80},
            "severity": "critical",
        }
    )
    return True
