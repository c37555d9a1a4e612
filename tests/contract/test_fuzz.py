"""Whatever is sent, the platform answers as its description promises, and never with 5xx.

`make fuzz` asks more often, with a seed of its own each time; SEED= repeats a run.
"""

import asyncio
import os
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import uuid4

import pytest
from fastapi import APIRouter, HTTPException
from pydantic import Field
from starlette.responses import JSONResponse

from deploy.edge.server import EmbeddedServer
from libs.common.http.access import public
from libs.common.http.app import create_app
from libs.common.http.schemas import Out
from tests.contract.fuzz import Document, Target, a_seed, fuzz
from tests.contract.isolation.test_walk import ADMIN, KINDS, Platform, Tenant, running
from tests.database import DatabaseUrls, fresh_database
from tests.servers import SharedServer

# schemathesis draws some of its data by `random`, which Hypothesis would rather it did not.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2"))
"""Requests to each operation in each of four ways: as it asks or not, of things that are or not."""

LEFT_OUT = {
    "POST /api/v1/connectors/{connector_id}/browse": "it waits for somebody else's server",
    "POST /api/v1/notification-channels/{channel_id}/test": "it waits for somebody else's server",
}
"""What is not asked at random, and why."""

LATE = {
    "POST /api/v1/plans": "a plan may allow nothing",
    "PUT /api/v1/plans/{plan_name}": "a plan may allow nothing",
    "DELETE /api/v1/plans/{plan_name}": "it comes after those",
    "PUT /api/v1/tenants/{tenant_id}/quotas": "the tenant may be allowed nothing",
    "DELETE /api/v1/auth/sessions": "it ends the sessions of who asks",
    "PUT /api/v1/rate-limits/{limit_id}": "the tenant may allow itself nothing",
    "POST /api/v1/rate-limits": "the tenant may allow itself nothing",
    "DELETE /api/v1/rate-limits/{limit_id}": "it comes after those",
    "PUT /api/v1/tenants/{tenant_id}/login-policy": "nobody of the tenant may be able to log in",
    "PUT /api/v1/tenants/{tenant_id}": "it may suspend the tenant",
    "PATCH /api/v1/tenants/{tenant_id}": "it may suspend the tenant",
    "POST /api/v1/tenants/{tenant_id}/suspend": "it suspends the tenant",
    "POST /api/v1/tenants/{tenant_id}/resume": "it comes after that",
    "DELETE /api/v1/tenants/{tenant_id}": "it removes the tenant",
}
"""What is asked in the end, in this order, and why."""

TURNED_AWAY = (401, 403, 429)
"""Answers that say who may ask, or how often, and not whether the request was understood."""


@pytest.fixture
def urls(postgres_server: SharedServer) -> DatabaseUrls:
    """A migrated database for this alone."""
    return fresh_database(postgres_server)


@pytest.fixture
async def platform(urls: DatabaseUrls) -> AsyncIterator[Platform]:
    """The whole platform."""
    async with running(urls) as platform:
        yield platform


@pytest.mark.timeout(max(300, EXAMPLES * 60))
async def test_no_answer_is_a_surprise(platform: Platform) -> None:
    root = Tenant(platform, uuid4(), ADMIN, "root")
    plant = await platform.open_tenant(root, f"fuzz-{secrets.token_hex(4)}")
    things = await plant.settle()
    loop = asyncio.get_running_loop()

    async def credential(name: str, permission: str) -> dict[str, str]:
        if permission == "platform:admin":
            return await root.credential(name)
        if name in LATE or (permission == "session:own" and not name.startswith("GET")):
            # It may end its session, and all others: who comes after it logs in anew.
            plant.token = ""
            return {"authorization": f"Bearer {await plant.log_in()}"}
        return await plant.credential(name)

    def headers(name: str, operation: Document) -> dict[str, str]:
        permission = operation.get("x-permission", "")
        return asyncio.run_coroutine_threadsafe(credential(name, permission), loop).result(30)

    def ids(name: str, operation: Document) -> dict[str, str]:
        path = name.partition(" ")[2]
        kinds = {
            parameter["name"]: KINDS.get(
                f"{path}#{parameter['name']}", KINDS.get(parameter["name"])
            )
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "path"
        }
        return {name: things[kind] for name, kind in kinds.items() if kind in things}

    listening = socket.create_server(("127.0.0.1", 0))
    server = EmbeddedServer(platform.gateway, listening, drain_s=1)
    server.start()
    document = (await platform.http.get("/api/v1/openapi.json")).json()
    for item in document["paths"].values():
        for said in item.values():
            if "parameters" in said:
                # It would be waited for, up to a minute each time.
                said["parameters"] = [p for p in said["parameters"] if p["name"] != "wait"]
    guarded = {
        f"{method.upper()} {path}"
        for path, item in document["paths"].items()
        for method, said in item.items()
        if "x-permission" in said
    }
    seed = a_seed(os.environ.get("SEED", "20261122"))
    try:
        target = Target(
            url=f"http://127.0.0.1:{listening.getsockname()[1]}",
            document=document,
            headers=headers,
            ids=ids,
            left_out=LEFT_OUT,
            late=LATE,
        )
        answers, faults = await asyncio.to_thread(fuzz, target, seed=seed, examples=EXAMPLES)
    finally:
        await server.stop()
    total: Counter[int] = sum(answers.values(), Counter())
    print(f"{total.total()} requests, SEED={seed}: {dict(sorted(total.items()))}")
    assert not faults, f"SEED={seed}\n" + "\n".join(faults)
    # A test of the door alone would pass, whatever is behind it.
    blind = [name for name, counted in answers.items() if not counted.keys() - set(TURNED_AWAY)]
    assert not blind, "nothing of these was looked at:\n" + "\n".join(blind)
    # What asks for no permission answers 401 of its own: to passwords and tokens made up.
    asked = sum((answers[name] for name in guarded & answers.keys()), Counter[int]())
    turned_away = {status: asked[status] for status in TURNED_AWAY}
    assert sum(turned_away.values()) <= asked.total() * 0.05, turned_away


class Press(Out):
    name: Annotated[str, Field(examples=["press-7"])]


faulty = APIRouter(prefix="/presses")


@faulty.get("/{number}", response_model=Press)
@public("a test")
async def get_press(number: int) -> object:
    """Break on every second press, and say of others what nobody promised."""
    if number % 2:
        raise RuntimeError("this press is broken")
    return JSONResponse({"strokes": 12})


@faulty.post("")
@public("a test")
async def add_press(press: Press) -> Press:
    """Refuse it in a way of its own."""
    raise HTTPException(418)


async def test_surprises_are_found_and_named() -> None:
    app = create_app("press-shop", version="1", routers=[faulty])
    listening = socket.create_server(("127.0.0.1", 0))
    server = EmbeddedServer(app, listening, drain_s=1)
    server.start()
    try:
        target = Target(
            url=f"http://127.0.0.1:{listening.getsockname()[1]}",
            document=app.openapi(),
            headers=lambda name, operation: {},
            ids=lambda name, operation: {"number": "2"} if "{number}" in name else {},
            left_out={},
        )
        _, faults = await asyncio.to_thread(fuzz, target, seed=1, examples=8)
    finally:
        await server.stop()
    told = "\n".join(faults)
    assert "GET /presses/{number} 500: Server error" in told
    assert "GET /presses/{number} 200: Response violates schema" in told
    assert "POST /presses 418: Undocumented status code" in told
