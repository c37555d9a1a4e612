"""OPC UA: tags a second read from a server, and how long a client's Write takes to be durable.

Ingest's half runs in this process as it does in the platform: the real reception, with the local bus
on a private PostgreSQL, so that what is counted is durable there. The other half is a process of its
own. `client`: a server whose tags all change with every publishing interval is subscribed to;
`tags_per_s` is what became durable, `tags_per_core_s` the same by the processor time that this
process spent, `tag_age_p99_ms` a tag's age, by its source's time, when it was durable, of which
`tag_age_read_p99_ms` had gone by when its notification was read. `server`:
clients with sessions that are signed and encrypted write one after the other; `write_p99_ms` is from
asking to the answer, which comes when the point is durable.
"""

import argparse
import asyncio
import multiprocessing
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import uvloop
from asyncua import Client, Server, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.crypto.uacrypto import CertProperties
from asyncua.server.internal_subscription import InternalSubscription

from deploy.local.database import PlatformDatabase
from deploy.local.servers import postgres
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.destinations import Destinations
from libs.common.service import settle_memory
from services.ingest.domain.connector import State
from services.ingest.domain.device import Source
from services.ingest.protocols.opcua.certificates import new_identity
from services.ingest.protocols.opcua.client import Reader
from services.ingest.protocols.opcua.notifications import Published
from services.ingest.protocols.opcua.server import Doors, OpcUaServer
from services.ingest.protocols.opcua.site import ItemSettings, OpcUaSettings
from services.ingest.protocols.opcua.subscription import Subscription
from services.ingest.usecases.connectors import Connector
from services.ingest.usecases.telemetry import Intake
from tests.bench.reception import open_reception
from tests.bench.report import Figure, percentile_ms, print_report, say

TAGS = 2_000
CLIENT_URI = "urn:bench:client"
LOOPBACK = IPv4Network("127.0.0.0/8")
"""Where the bench's connector may connect to."""

CHANGE = np.dtype(
    [("handle", "<u4"), ("mask", "u1"), ("type", "u1"), ("value", "<f8"), ("source", "<i8")]
)
"""A MonitoredItemNotification of a Double, as OPC 10000-6 writes it."""
VALUE_AND_SOURCE_TIME = 0x05
TICKS_1970 = 116_444_736_000_000_000
DATA_CHANGE = ua.NodeId(ua.ObjectIds.DataChangeNotification_Encoding_DefaultBinary)


# --- a server whose tags all change, all the time


def serve(pipe: Connection, tags: int) -> None:
    """Be a server; tell its port."""

    def every_tag(self: InternalSubscription, result: ua.PublishResult) -> None:
        # A PLC's tags change by themselves, and their age is ours alone: the library would take
        # longer to notice the changes and to write them down than we take to make them durable.
        items = self.monitored_item_srv._monitored_items.values()
        if not items:
            return
        now = time.time()
        changes = np.zeros(len(items), CHANGE)
        changes["handle"] = [item.client_handle for item in items]
        changes["mask"], changes["type"] = VALUE_AND_SOURCE_TIME, ua.VariantType.Double.value
        changes["value"] = now
        changes["source"] = round(now * 1e7) + TICKS_1970
        body = struct.pack("<i", len(items)) + changes.tobytes() + struct.pack("<i", -1)
        result.NotificationMessage.NotificationData.append(ua.ExtensionObject(DATA_CHANGE, body))

    async def run() -> None:
        server = Server()
        await server.init()
        server.set_endpoint("opc.tcp://127.0.0.1:0")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        await server.register_namespace("urn:bench")
        for number in range(tags):
            await server.nodes.objects.add_variable(
                ua.NodeId(f"tag{number}", 2), f"tag{number}", 0.0
            )
        await server.start()
        settle_memory()
        pipe.send(server.bserver.port)
        await asyncio.Event().wait()

    InternalSubscription._pop_triggered_datachanges = every_tag
    InternalSubscription.has_published_results = lambda self: True
    uvloop.run(run())


@dataclass(slots=True)
class Counted:
    """What the intake made durable."""

    tags: int = 0
    ages_s: list[float] = field(default_factory=list)
    read_ages_s: list[float] = field(default_factory=list)
    """Of tags that were read, durable or not."""


def count_durable(intake: Intake, counted: Counted) -> None:
    """Have the intake count what becomes durable, and how old it is then."""
    add = intake.add

    def counting(source: Source, decoded: Any, done: Callable[[], None]) -> Any:
        points = len(decoded.points)
        newest = decoded.points[-1].ts / 1e6 if points else 0.0

        def durable() -> None:
            counted.tags += points
            if points:
                counted.ages_s.append(time.time() - newest)
            done()

        return add(source, decoded, durable)

    intake.add = counting  # type: ignore[method-assign]  # counts, and does the same


def count_read(counted: Counted) -> None:
    """Have it counted how old tags are when the notification has been read that brings them."""
    take = Subscription._take

    async def counting(self: Subscription, published: Published) -> None:
        if published.changes:
            counted.read_ages_s.append(time.time() - (published.changes[-1].source_us or 0) / 1e6)
        await take(self, published)

    Subscription._take = counting  # type: ignore[method-assign]  # counts, and does the same


async def measure_client(
    bus: LocalBus, seconds: float, interval_ms: float, tags: int
) -> dict[str, Figure]:
    """Subscribe to all tags of a server; return the figures."""
    reception, known = open_reception(bus.publish)
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(theirs, tags), daemon=True)
    server.start()
    port = await asyncio.to_thread(ours.recv)
    settings = OpcUaSettings(
        endpoint=f"opc.tcp://127.0.0.1:{port}",
        security="none",
        allow_insecure=True,
        publishing_ms=interval_ms,
        items=[
            ItemSettings(device=f"plc {n % 10}", metric=f"tag{n}", node_id=f"ns=2;s=tag{n}")
            for n in range(tags)
        ],
    )
    connector = Connector(
        id=uuid4(),
        tenant_id=uuid4(),
        name="bench",
        kind="opcua",
        settings=settings,
        secrets={},
        version=1,
        destinations=Destinations((LOOPBACK,)),
        devices=cast(Any, known),
    )
    connected = asyncio.Event()

    def report(state: State, reason: str) -> None:
        say(f"the connector is {state} {reason}")
        connected.set()

    counted = Counted()
    count_durable(reception.intake, counted)
    count_read(counted)
    reception.intake.start()
    reception.start()
    running = asyncio.create_task(Reader(connector, reception, report, None, None).run())
    try:
        await connected.wait()
        await asyncio.sleep(2)
        counted.tags, counted.ages_s, counted.read_ages_s = 0, [], []
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        lasted, spent = time.monotonic() - began, time.process_time() - cpu
        durable, ages = counted.tags, np.array(counted.ages_s)
        read_ages = np.array(counted.read_ages_s)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await reception.stop()
        await reception.intake.stop()
        server.kill()
    return {
        "tags_per_s": round(durable / lasted),
        "tags_per_core_s": round(durable / spent),
        "tag_age_p50_ms": percentile_ms(ages, 50),
        "tag_age_p99_ms": percentile_ms(ages, 99),
        "tag_age_read_p99_ms": percentile_ms(read_ages, 99),
    }


# --- clients that write


def write(pipe: Connection, port: int, clients: int) -> None:
    """Be clients; write for as many seconds as come through the pipe, and tell how long each took."""

    async def one(took: list[float]) -> None:
        device_id = uuid4()
        identity = new_identity(datetime.now(UTC), CLIENT_URI)
        client = Client(f"opc.tcp://127.0.0.1:{port}", timeout=30)
        client.application_uri = CLIENT_URI
        await client.set_security(
            SecurityPolicyBasic256Sha256,
            CertProperties(identity.certificate, "der"),
            CertProperties(identity.key, "pem"),
        )
        client.set_user(str(device_id))
        client.set_password(str(device_id))
        async with client:
            device = client.get_node(ua.NodeId(str(device_id), 2))
            add = ua.NodeId(f"{device_id}#AddMetric", 2)
            node = client.get_node(await device.call_method(add, "temp", "number"))
            pipe.send("ready")
            await go.wait()
            until = time.monotonic() + lasts
            while time.monotonic() < until:
                asked = time.monotonic()
                await node.write_value(ua.Variant(asked))
                took.append(time.monotonic() - asked)

    go = asyncio.Event()
    lasts = 0.0

    async def run() -> None:
        nonlocal lasts
        took: list[float] = []
        tasks = [asyncio.create_task(one(took)) for _ in range(clients)]
        lasts = await asyncio.to_thread(pipe.recv)
        go.set()
        await asyncio.gather(*tasks)
        pipe.send(took)

    uvloop.run(run())


async def measure_server(bus: LocalBus, seconds: float, clients: int) -> dict[str, Figure]:
    """Let clients write; return the figures."""
    reception, _ = open_reception(bus.publish)
    reception.intake.start()
    reception.start()
    server = OpcUaServer(reception, Doors("127.0.0.1", 0, None, None, None, 500, 1_000))
    port = await server.listen()
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=write, args=(theirs, port, clients), daemon=True)
    writer.start()
    theirs.close()  # so that its end is heard of, should it fail
    try:
        for _ in range(clients):
            await asyncio.to_thread(ours.recv)
        say(f"{clients} clients write for {seconds} s")
        ours.send(seconds)
        took = np.array(await asyncio.to_thread(ours.recv))
    finally:
        writer.kill()
        await server.stop()
        await reception.stop()
        await reception.intake.stop()
    return {
        "writes_per_s": round(len(took) / seconds),
        "write_p50_ms": percentile_ms(took, 50),
        "write_p99_ms": percentile_ms(took, 99),
    }


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.opcua",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="each (default 10)")
    parser.add_argument("--interval-ms", type=float, default=100, help="publishing (default 100)")
    parser.add_argument("--tags", type=int, default=TAGS, help=f"of the server (default {TAGS})")
    parser.add_argument("--clients", type=int, default=20, help="that write (default 20)")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()

    async def run(bus_url: str) -> dict[str, Figure]:
        bus = LocalBus(bus_url, SystemClock())
        await bus.start()
        settle_memory()  # as a service does
        try:
            return {
                "tags": options.tags,
                **await measure_client(bus, options.seconds, options.interval_ms, options.tags),
                "clients": options.clients,
                **await measure_server(bus, options.seconds, options.clients),
            }
        finally:
            await bus.stop()

    with tempfile.TemporaryDirectory() as folder:
        server = postgres(Path(folder) / "postgres")
        server.start()
        try:
            database = PlatformDatabase(server, Path(folder) / "passwords.json")
            asyncio.run(database.prepare())
            figures = uvloop.run(run(database.url("bus_rw")))
        finally:
            server.stop()
    print_report(figures, mode="private", as_json=options.json)


if __name__ == "__main__":
    main()
