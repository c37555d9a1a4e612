"""A connector goes to the address that was judged, whatever its host is called a moment later."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from libs.common import destinations
from services.ingest.protocols import mqtt_bridge
from tests.service.ingest.conftest import World
from tests.service.ingest.test_modbus import site  # noqa: F401 - the fixture
from tests.waiting import until

HOST = "plant.invalid"
"""Which no resolver knows but the test's."""
REGISTERS = [{"device": "meter", "metric": "power", "address": 0}]
TOPICS = [{"topic": "plant/{device}"}]
INSECURE = {"security": "none", "allow_insecure": True, "items": []}


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("modbus", {"host": HOST, "port": 0, "registers": REGISTERS}),
        ("mqtt", {"url": f"mqtt://{HOST}:0", "topics": TOPICS}),
        ("opcua", {"endpoint": f"opc.tcp://{HOST}:0", **INSECURE}),
        (
            "opcua",
            {
                "endpoint": f"opc.tcp://{HOST}:0",
                "server_fingerprint": "00" * 32,
                "items": [],
            },
        ),
    ],
    ids=["modbus", "mqtt", "opcua", "opcua-asked-for-its-certificate"],
)
async def test_the_address_that_was_judged_is_connected_to(
    site: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    written: dict[str, Any],
) -> None:
    asked: list[str] = []

    async def resolved(host: str, port: int) -> list[str]:
        """Answer as a name server that turns to another address once it was judged."""
        asked.append(host)
        return ["127.0.0.1" if len(asked) == 1 else "10.255.255.1"]

    monkeypatch.setattr(destinations, "_resolve", resolved)
    monkeypatch.setattr(mqtt_bridge, "ANSWER_S", 0.2)
    came: list[int] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(len(asked))
        writer.close()

    await site.device("meter")
    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        meant = {
            name: value.replace(f"{HOST}:0", f"{HOST}:{port}") if isinstance(value, str) else value
            for name, value in written.items()
        }
        if "port" in meant:
            meant["port"] = port
        answer = await site.http.post(
            "/api/v1/connectors",
            json={"name": str(uuid4()), "kind": kind, "settings": meant},
            headers=site.headers,
        )
        assert answer.status_code == 201, answer.text
        connector = answer.json()["id"]
        await until(lambda: bool(came), "it is connected to")

        async def is_refused() -> bool:
            shown = await site.http.get(f"/api/v1/connectors/{connector}", headers=site.headers)
            return "connects to nothing at" in str(shown.json()["reason"])

        await until(is_refused, "what it is called the next time is judged anew")
    assert came == [1]
