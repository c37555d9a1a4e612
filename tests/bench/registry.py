"""What it takes to find devices: the list of the registry, asked with every kind of filter.

One tenant has most of the devices, a hundred others have some. The service is asked through its
routes, in this process, one request at a time; an import of 10,000 rows is timed as well.
"""

import argparse
import asyncio
import csv
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import asyncpg
import httpx2
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from deploy.local.database import PlatformDatabase
from deploy.local.servers import postgres
from libs.common import log
from libs.common.auth.principal import HEADER, Kind, Principal, PrincipalSigner, StaticKeys
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.bench.report import percentile_ms, print_report, say

TENANTS = 100
EACH = 50
AT_ONCE = 5_000
"""Devices copied with one statement."""
SITES, LINES = 20, 10
TYPES = ("pump", "press", "valve", "meter", "robot")
TAGS = tuple(f"tag-{number}" for number in range(50))
SEED = 7
ROWS = 10_000


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.registry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=100_000, metavar="N")
    parser.add_argument("--requests", type=int, default=100, metavar="N", help="of each kind")
    parser.add_argument("--json", action="store_true", help="one JSON line, last on stdout")
    arguments = parser.parse_args()
    log.configure("bench", level="error")
    with tempfile.TemporaryDirectory(prefix="iiot-bench-") as directory:
        Path(directory).chmod(0o755)
        server = postgres(Path(directory) / "postgres")
        server.start()
        try:
            database = PlatformDatabase(server, Path(directory) / "passwords.json")
            asyncio.run(database.prepare())
            figures = asyncio.run(measure(database, arguments.devices, arguments.requests))
        finally:
            server.stop()
    print_report(figures, mode="one process", as_json=arguments.json)


async def measure(
    database: PlatformDatabase, devices: int, requests: int
) -> dict[str, float | None]:
    """Fill the registry, ask it, and return the figures."""
    key = ec.generate_private_key(ec.SECP256R1())
    settings = Settings(
        database_url=SecretStr(database.url("ingest_rw")),
        engine_database_url=SecretStr(database.url("ingest_engine")),
        historian_writer_url=SecretStr(database.url("historian_writer")),
        devices_per_tenant=devices + ROWS,
        mqtt_host="127.0.0.1",
        mqtt_port=0,
        coap_port=0,
    )
    tenant_id = uuid4()
    admin = await asyncpg.connect(database.admin_url)
    say(f"{devices} devices of one tenant, {EACH} of each of {TENANTS} others")
    began = time.monotonic()
    groups = await fill(admin, tenant_id, devices)
    for _ in range(TENANTS):
        await fill(admin, uuid4(), EACH)
    await admin.execute("VACUUM ANALYZE ingest.devices, ingest.device_terms, ingest.contacts")
    say(f"filled in {time.monotonic() - began:.0f} s")
    bus = LocalBus(database.url("bus_rw"), SystemClock())
    app = build(settings, bus, SystemClock(), keys=StaticKeys({"bench": key.public_key()}))
    signer = PrincipalSigner(key, "bench")

    def headers() -> dict[str, str]:
        principal = Principal(
            subject=uuid4(), tenant_id=tenant_id, kind=Kind.USER, permissions=frozenset({"*"})
        )
        return {HEADER: signer.sign(principal, datetime.now(UTC))}

    figures: dict[str, float | None] = {"devices": devices}
    async with app.router.lifespan_context(app):
        await bus.start()
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://ingest", timeout=60
        ) as http:
            worst = 0.0
            for name, query in queries(Random(SEED), groups, devices).items():
                p95 = await ask(http, headers, query, requests)
                figures[f"{name}_p95_ms"] = p95
                worst = max(worst, p95 or 0)
            figures["worst_p95_ms"] = worst
            figures["import_10000_s"] = await import_rows(http, headers())
        await bus.stop()
    await admin.close()
    return figures


async def fill(admin: asyncpg.Connection, tenant_id: UUID, devices: int) -> list[UUID]:
    """Make a tenant's groups and devices; return the groups."""
    random = Random(SEED)
    now = datetime.now(UTC) - timedelta(days=1)
    groups: list[tuple[UUID, UUID | None, str, list[UUID]]] = []
    for site in range(SITES):
        site_id = uuid4()
        groups.append((site_id, None, f"Site {site}", [site_id]))
        for line in range(LINES):
            line_id = uuid4()
            groups.append((line_id, site_id, f"Line {line}", [site_id, line_id]))
    await admin.executemany(
        "INSERT INTO ingest.device_groups (tenant_id, id, parent_id, name, kind, path, created_at,"
        " updated_at) VALUES ($1, $2, $3, $4, 'group', $5, now(), now())",
        [(tenant_id, *group) for group in groups],
    )
    lines = [group_id for group_id, parent_id, _, _ in groups if parent_id is not None]
    ids = [uuid4() for _ in range(devices)]
    records = [
        (
            tenant_id,
            device_id,
            f"{random.choice(TYPES)} {number:06}",
            random.choice(TYPES),
            f"SN-{random.randrange(10**9):09}-{number}",
            random.choice(lines),
            random.sample(TAGS, 3),
            "online" if random.random() < 0.999 else "offline",
            now + timedelta(milliseconds=number),
            now,
        )
        for number, device_id in enumerate(ids)
    ]
    for start in range(0, devices, AT_ONCE):
        await admin.copy_records_to_table(
            "devices",
            schema_name="ingest",
            columns=[
                *("tenant_id", "id", "name", "type", "serial", "group_id", "tags", "status"),
                *("created_at", "updated_at"),
            ],
            records=records[start : start + AT_ONCE],
        )
    await admin.copy_records_to_table(
        "device_attributes",
        schema_name="ingest",
        columns=["tenant_id", "device_id", "scope", "attributes", "updated_at"],
        records=[
            (tenant_id, device_id, "server", json.dumps({"floor": number % 500}), now)
            for number, device_id in enumerate(ids[: devices // 5])
        ],
    )
    await admin.execute(
        "UPDATE ingest.contacts SET seen_at = now() - random() * interval '1 day',"
        " protocol = CASE WHEN random() < 0.001 THEN 'coap' ELSE 'mqtt' END"
        " WHERE tenant_id = $1",
        tenant_id,
    )
    return [group_id for group_id, *_ in groups]


def queries(random: Random, groups: list[UUID], devices: int) -> dict[str, Callable[[], str]]:
    """Return what is asked, by its name in the figures."""

    def number() -> str:
        return f"{random.randrange(devices):06}"

    return {
        "first_page": lambda: "",
        "by_name": lambda: "sort=name",
        "last_seen": lambda: "sort=-last_seen_at",
        "q_common": lambda: f"q={random.choice(TYPES)}",
        "q_rare": lambda: f"q={number()}",
        "q_two_letters": lambda: f"q={random.randrange(100):02}",
        "q_none": lambda: "q=zzzz",
        "q_one_letter": lambda: f"q={random.randrange(10)}",
        "q_common_by_name": lambda: f"q={random.choice(TYPES)}&sort=name",
        "q_common_last_seen": lambda: f"q={random.choice(TYPES)}&sort=-last_seen_at",
        "q_common_group": lambda: f"q={random.choice(TYPES)}&group_id={random.choice(groups)}",
        "q_by_name": lambda: f"q={number()[:4]}&sort=name",
        "type": lambda: f"type={random.choice(TYPES)}",
        "tag": lambda: f"tag={random.choice(TAGS)}",
        "tag_by_name": lambda: f"tag={random.choice(TAGS)}&sort=name",
        "tag_last_seen": lambda: f"tag={random.choice(TAGS)}&sort=-last_seen_at",
        "tags": lambda: "&".join(f"tag={tag}" for tag in random.sample(TAGS, 3)),
        "any_tag": lambda: "&".join(f"any_tag={tag}" for tag in random.sample(TAGS, 3)),
        "group": lambda: f"group_id={random.choice(groups)}",
        "group_by_name": lambda: f"group_id={random.choice(groups)}&sort=name",
        "group_last_seen": lambda: f"group_id={random.choice(groups)}&sort=-last_seen_at",
        "status": lambda: "status=offline",
        "protocol": lambda: "protocol=coap",
        "attribute": lambda: f"attribute=floor:{random.randrange(500)}",
        "type_tag_group": lambda: (
            f"type={random.choice(TYPES)}&tag={random.choice(TAGS)}"
            f"&group_id={random.choice(groups)}"
        ),
        "tag_status": lambda: f"tag={random.choice(TAGS)}&status=offline",
        "tag_protocol_by_name": lambda: f"tag={random.choice(TAGS)}&protocol=coap&sort=name",
        "q_group_last_seen": lambda: (
            f"q={number()[:3]}&group_id={random.choice(groups)}&sort=-last_seen_at"
        ),
    }


async def ask(
    http: httpx2.AsyncClient,
    headers: Callable[[], dict[str, str]],
    query: Callable[[], str],
    requests: int,
) -> float | None:
    """Return the p95 of a kind of request, in ms."""
    sent = headers()
    durations = []
    for number in range(requests + 3):
        asked = query()
        began = time.perf_counter()
        answer = await http.get(f"/api/v1/devices?{asked}", headers=sent)
        if number >= 3:  # the first ones plan, and fill caches
            durations.append(time.perf_counter() - began)
        answer.raise_for_status()
    p95 = percentile_ms(np.array(durations), 95)
    say(f"{asked[:60]:60} p95 {p95} ms, median {statistics.median(durations) * 1000:.1f} ms")
    return p95


async def import_rows(http: httpx2.AsyncClient, headers: dict[str, str]) -> float:
    """Return how many seconds an import of 10,000 rows takes."""
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(["name", "type", "serial", "group", "tags", "attributes"])
    for number in range(ROWS):
        writer.writerow(
            [f"new {number}", "pump", f"N-{number}", "Site 1/Line 1", "a;b", '{"floor": 1}']
        )
    began = time.perf_counter()
    answer = await http.post(
        "/api/v1/devices/import",
        content=sheet.getvalue().encode(),
        headers={**headers, "content-type": "text/csv"},
    )
    took = round(time.perf_counter() - began, 2)
    answer.raise_for_status()
    say(f"{ROWS} rows imported in {took} s")
    return took


if __name__ == "__main__":
    main()
