"""A platform small enough to read, on a real port, and a real Mosquitto."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

import pytest
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict, JsonValue

from deploy.local.mosquitto import Mosquitto, find_mosquitto
from tests.waiting import until

EMAIL = "plant@example.test"
PASSWORD = "a password of the test"
Json = dict[str, object]
Bearer = Annotated[str, Header(alias="authorization")]


class Login(BaseModel):
    email: str
    password: str


class NewDevice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    type: str


class NewRule(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    type: str
    device_id: str
    metric: str
    condition: dict[str, float | str]
    severity: str


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")
    status: Literal["acknowledged", "succeeded", "failed"]
    result: JsonValue = None
    error: str | None = None


class Telemetry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    ts: int
    values: dict[str, float | bool | str]


@dataclass
class FakePlatform:
    """What the API holds, and what it is told to answer instead of 202."""

    url: str = ""
    devices: dict[str, Json] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Device id -> token."""
    rules: list[Json] = field(default_factory=list)
    rotations: list[str] = field(default_factory=list)
    telemetry: list[tuple[str, int]] = field(default_factory=list)
    """(device id, ts) of each accepted reading."""
    answers: list[Response] = field(default_factory=list)
    """Given, one each, to the next telemetry requests."""
    commands: dict[str, list[Json]] = field(default_factory=dict)
    """Device id -> what it is asked to do; given to it once."""
    replies: list[tuple[str, str, Json]] = field(default_factory=list)
    """(device id, command, what the device said)."""
    polls: int = 0
    """How often devices asked for commands."""
    is_closing: bool = False
    """Whoever waits for a command is answered."""
    starting: int = 0
    """Requests still to be answered by 503."""

    def app(self) -> FastAPI:
        app = FastAPI()

        def user(authorization: str) -> None:
            if authorization != "Bearer user":
                raise HTTPException(401)

        def device(authorization: str) -> str:
            by_token = {token: device_id for device_id, token in self.tokens.items()}
            device_id = by_token.get(authorization.removeprefix("Bearer "))
            if device_id is None:
                raise HTTPException(401)
            return device_id

        @app.get("/api/v1/devices/me/commands")
        async def give_commands(
            authorization: Bearer, wait: Annotated[int, Query(ge=1, le=50)] = 1
        ) -> Json:
            self.polls += 1
            asks = device(authorization)
            with contextlib.suppress(AssertionError):
                await until(
                    lambda: asks in self.commands or self.is_closing, "a command", within_s=wait
                )
            return {"items": self.commands.pop(asks, [])}

        @app.post("/api/v1/devices/me/commands/{command}/reply")
        async def take_reply(command: str, body: Reply, authorization: Bearer) -> Json:
            said = body.model_dump(exclude_unset=True)
            self.replies.append((device(authorization), command, said))
            return {}

        @app.post("/api/v1/auth/login")
        async def login(body: Login) -> Json:
            if self.starting > 0:
                self.starting -= 1
                raise HTTPException(503)
            if (body.email, body.password) != (EMAIL, PASSWORD):
                raise HTTPException(401, "wrong address or password")
            return {"access_token": "user", "token_type": "Bearer"}

        @app.post("/api/v1/devices", status_code=201)
        async def create_device(body: NewDevice, authorization: Bearer) -> Json:
            user(authorization)
            if any(device["name"] == body.name for device in self.devices.values()):
                raise HTTPException(409, "name taken")
            device_id = str(uuid4())
            self.devices[device_id] = {"id": device_id, "name": body.name, "type": body.type}
            self.tokens[device_id] = f"token-{uuid4()}"
            return self.devices[device_id] | {"credentials": {"token": self.tokens[device_id]}}

        @app.get("/api/v1/devices")
        async def list_devices(
            authorization: Bearer, cursor: str = "0", limit: Annotated[int, Query(le=200)] = 50
        ) -> Json:
            user(authorization)
            # Short pages on purpose: whoever reads only the first one misses devices.
            begin, end = int(cursor), int(cursor) + min(limit, 5)
            listed = list(self.devices.values())
            return {
                "items": listed[begin:end],
                "next_cursor": str(end) if end < len(listed) else None,
            }

        @app.post("/api/v1/devices/{device_id}/credentials", status_code=201)
        async def rotate(device_id: str, authorization: Bearer) -> Json:
            user(authorization)
            self.rotations.append(device_id)
            self.tokens[device_id] = f"token-{uuid4()}"
            return {"token": self.tokens[device_id]}

        @app.get("/api/v1/rules")
        async def list_rules(authorization: Bearer) -> Json:
            user(authorization)
            return {"items": self.rules, "next_cursor": None}

        @app.post("/api/v1/rules", status_code=201)
        async def create_rule(body: NewRule, authorization: Bearer) -> Json:
            user(authorization)
            self.rules.append({"id": str(uuid4())} | body.model_dump())
            return self.rules[-1]

        @app.post("/api/v1/telemetry", status_code=202, response_model=None)
        async def take(body: Telemetry, authorization: Bearer) -> Json | Response:
            if self.answers:
                return self.answers.pop(0)
            device_id = device(authorization)
            self.telemetry.append((device_id, body.ts))
            return {"accepted": len(body.values), "rejected": 0}

        return app


@pytest.fixture
async def platform() -> AsyncIterator[FakePlatform]:
    """Yield a platform that listens on a port of its own."""
    platform = FakePlatform()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        platform.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            platform.app(), log_level="warning", lifespan="off", ws="none", loop="none"
        )
        server = uvicorn.Server(config)
        # The server's own start-up listens too; requests before it just wait in the backlog.
        listener.listen()
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        yield platform
        platform.is_closing = server.should_exit = True
        await serving


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """Yield a Mosquitto of this test's own, which it may kill."""
    broker = Mosquitto(tmp_path / "mosquitto", find_mosquitto())
    broker.start()
    yield broker
    broker.stop()
