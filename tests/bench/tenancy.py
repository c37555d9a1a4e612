"""What it costs that tenants are kept apart, and what they notice of each other.

`rls`: the same queries of the same code, as the service's role and as one that row-level security
does not bind, in turn. `switch`: how long it takes to enter another tenant. `flood`: a tenant asks
for far more than it may while another one works.
"""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import asyncpg
import httpx2
import numpy as np

from deploy.local.database import PlatformDatabase
from deploy.local.servers import postgres
from libs.common import log
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from libs.common.historian.reader import find_series, read_points
from services.ingest.domain.search import Wanted
from services.ingest.store.store import IngestStore
from tests.bench.registry import fill
from tests.bench.report import Figure, percentile_ms, print_report, say
from tests.bench.stack import ADMIN_EMAIL, ADMIN_PASSWORD, ClusterStack

TENANTS, DEVICES, POINTS = 100, 100, 1_000
SEED = 11
PARTS = ("rls", "switch", "flood")
SERVICES = ("ingest", "analytics")
"""As which it is asked: ingest reads no points."""
PROCESSES = ("gateway", "tenancy", "ingest")
PASSWORD = "a-bench-needs-no-secret"
PER_S = 25
"""What the tenant that works asks for: within its limit."""
FLOOD_PER_S = 300
"""What the other one asks for: some users who may each do 16 a second."""
FLOODING_USERS = 5

Ask = Callable[[IngestStore], Awaitable[object]]


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.tenancy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=PARTS, help="one of them alone")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="over all queries")
    parser.add_argument("--seconds", type=int, default=20, metavar="S", help="alone, and flooded")
    parser.add_argument("--json", action="store_true", help="one JSON line, last on stdout")
    arguments = parser.parse_args()
    log.configure("bench", level="error")
    figures: dict[str, Figure] = {"tenants": TENANTS, "devices_of_each": DEVICES}
    with tempfile.TemporaryDirectory(prefix="iiot-bench-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        if arguments.part in (None, "rls"):
            figures |= _on_a_database(directory, arguments.rounds)
        if arguments.part != "rls":
            figures |= _on_a_cluster(directory / "cluster", arguments.part, arguments.seconds)
    print_report(figures, mode="cluster", as_json=arguments.json)


# --- row-level security


def _on_a_database(directory: Path, rounds: int) -> dict[str, Figure]:
    server = postgres(directory / "postgres")
    server.start()
    try:
        database = PlatformDatabase(server, directory / "passwords.json")
        asyncio.run(database.prepare())
        return asyncio.run(_compare(database, rounds))
    finally:
        server.stop()


async def _compare(database: PlatformDatabase, rounds: int) -> dict[str, Figure]:
    admin = await asyncpg.connect(database.admin_url)
    say(f"{TENANTS} tenants with {DEVICES} devices each, and {POINTS} points of one of them")
    tenants = [uuid4() for _ in range(TENANTS)]
    for tenant_id in tenants:
        await fill(admin, tenant_id, DEVICES)
    sensors = {tenant_id: await _give_points(admin, tenant_id) for tenant_id in tenants}
    await admin.execute("VACUUM ANALYZE")
    for service in SERVICES:
        # All that the service's role may, and bound by no policy.
        await admin.execute(
            f"CREATE ROLE {service}_unbound LOGIN BYPASSRLS INHERIT PASSWORD '{PASSWORD}'"
            f" IN ROLE {service}_rw"
        )
    await admin.close()
    outbox = LocalBus(database.url("bus_rw"), SystemClock()).outbox("ingest")
    databases = {
        (service, which): Database(url, application_name="bench")
        for service in SERVICES
        for which, url in (
            ("with", database.url(f"{service}_rw")),
            ("without", _as_role(database.url(f"{service}_rw"), f"{service}_unbound")),
        )
    }
    random = Random(SEED)
    took: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 2):
        for tenant_id in random.sample(tenants, 10):
            for name, (service, ask) in _queries(random, sensors[tenant_id]).items():
                # In turn, and either one first as often: the second finds the pages warm.
                order = ("with", "without") if random.random() < 0.5 else ("without", "with")
                for which in order:
                    door = Transactions(databases[service, which], outbox, IngestStore)
                    began = time.perf_counter()
                    async with door.begin(tenant_id) as store:
                        await ask(store)
                    spent = time.perf_counter() - began
                    if number >= 2:
                        took.setdefault(name, {}).setdefault(which, []).append(spent)
    for opened in databases.values():
        await opened.close()
    figures: dict[str, Figure] = {}
    sums = {"with": 0.0, "without": 0.0}
    for name, by_door in took.items():
        medians = {which: statistics.median(spans) * 1000 for which, spans in by_door.items()}
        for which, median in medians.items():
            sums[which] += median
        ratio = medians["with"] / medians["without"]
        say(f"{name}: {medians['with']:.2f} ms with, {medians['without']:.2f} ms without")
        figures[f"rls_ratio_{name}"] = round(ratio, 3)
    figures["rls_ratio"] = round(sums["with"] / sums["without"], 3)
    return figures


def _queries(random: Random, sensor: UUID) -> dict[str, tuple[str, Ask]]:
    """Return what is asked of one tenant, and as which service, by its name in the figures."""
    now = datetime.now(UTC)
    type_ = random.choice(("pump", "press", "valve"))

    async def points(store: IngestStore) -> object:
        series = await find_series(store.session, store.tenant_id, sensor, "temperature")
        found = await read_points(
            store.session, series, now - timedelta(hours=12), now, limit=POINTS
        )
        assert len(found) > POINTS // 2, f"{len(found)} points"
        return found

    return {
        "device": ("ingest", lambda store: store.devices.get(sensor)),
        "page": ("ingest", lambda store: store.devices.find(Wanted(), 51)),
        "search": ("ingest", lambda store: store.devices.find(Wanted(q=type_), 51)),
        "count": ("ingest", lambda store: store.devices.count()),
        "groups": ("ingest", lambda store: store.groups.all()),
        "points": ("analytics", points),
    }


async def _give_points(admin: asyncpg.Connection, tenant_id: UUID) -> UUID:
    """Give one of the tenant's devices points, one every 30 s, the last of them now."""
    device_id: UUID = await admin.fetchval(
        "SELECT id FROM ingest.devices WHERE tenant_id = $1 LIMIT 1", tenant_id
    )
    await admin.execute("SELECT historian.tenant_number($1)", tenant_id)
    series = await admin.fetchrow(
        "INSERT INTO historian.series (tenant, device_id, metric, kind)"
        " SELECT historian.number_of($1), $2, 'temperature', 0 RETURNING tenant, id",
        tenant_id,
        device_id,
    )
    assert series is not None
    await admin.execute(
        "INSERT INTO historian.points (tenant, series, ts, value, quality)"
        " SELECT $1, $2, now() - n * interval '30 s', 20 + random(), 0"
        " FROM generate_series(1, $3::int) AS n",
        *series,
        POINTS,
    )
    return device_id


def _as_role(url: str, role: str) -> str:
    return f"postgresql://{role}:{PASSWORD}@{url.rpartition('@')[2]}"


# --- entering another tenant, and a neighbour who floods


def _on_a_cluster(directory: Path, part: str | None, seconds: int) -> dict[str, Figure]:
    stack = ClusterStack(
        directory, PROCESSES, shards=1, env={"GATEWAY_ANONYMOUS_PER_MINUTE": "10000"}
    )
    stack.start()
    try:
        return asyncio.run(_ask_cluster(stack.gateway_url or "", part, seconds))
    finally:
        stack.stop()


@dataclass(frozen=True, slots=True)
class _Tenant:
    id: UUID
    tokens: Sequence[str]
    """The access tokens of its users."""


async def _ask_cluster(base: str, part: str | None, seconds: int) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx2.AsyncClient(
        base_url=base, trust_env=False, timeout=30, limits=limits
    ) as http:
        platform = await _log_in(http, ADMIN_EMAIL, ADMIN_PASSWORD)
        worker = await _found(http, platform, "works", users=2)
        flooder = await _found(http, platform, "floods", users=FLOODING_USERS)
        for tenant in (worker, flooder):
            for number in range(20):
                answer = await http.post(
                    "/api/v1/devices",
                    json={"name": f"pump-{number}", "type": "pump"},
                    headers=_as(tenant.tokens[0]),
                )
                answer.raise_for_status()
        if part in (None, "switch"):
            figures |= await _measure_switch(http, platform)
        if part in (None, "flood"):
            figures |= await _measure_flood(http, worker, flooder, seconds)
    return figures


async def _measure_switch(http: httpx2.AsyncClient, platform: str) -> dict[str, Figure]:
    tenants = (await http.get("/api/v1/auth/me", headers=_as(platform))).raise_for_status().json()
    ids = [membership["tenant_id"] for membership in tenants["memberships"]]
    spans = []
    for tenant_id in itertools.islice(itertools.cycle(ids), 100):
        began = time.perf_counter()
        answer = await http.post(
            "/api/v1/auth/switch", json={"tenant_id": tenant_id}, headers=_as(platform)
        )
        token = answer.raise_for_status().json()["access_token"]
        # Entered is who was served there.
        (await http.get("/api/v1/devices?limit=1", headers=_as(token))).raise_for_status()
        spans.append(time.perf_counter() - began)
    say(f"100 switches, each with a first request, in {sum(spans):.1f} s")
    return {
        "switch_p50_ms": percentile_ms(np.array(spans), 50),
        "switch_p99_ms": percentile_ms(np.array(spans), 99),
    }


async def _measure_flood(
    http: httpx2.AsyncClient, worker: _Tenant, flooder: _Tenant, seconds: int
) -> dict[str, Figure]:
    await _work(http, worker, 3)
    alone, flooded = [], []
    refused = answered = 0
    # In turn, so that what else the machine does falls on both.
    for number in range(4):
        if number % 2 == 0:
            alone += await _work(http, worker, seconds / 2)
            continue
        async with _flooding(http, flooder) as counts:
            await asyncio.sleep(1)
            flooded += await _work(http, worker, seconds / 2)
        refused += counts["refused"]
        answered += counts["answered"]
    before, during = (percentile_ms(np.array(spans), 99) for spans in (alone, flooded))
    assert before is not None
    assert during is not None
    say(f"p99 {before} ms alone, {during} ms beside a flood; {answered} let in, {refused} refused")
    return {
        "alone_p50_ms": percentile_ms(np.array(alone), 50),
        "alone_p99_ms": before,
        "flooded_p50_ms": percentile_ms(np.array(flooded), 50),
        "flooded_p99_ms": during,
        "flood_ratio_p99": round(during / before, 2),
        "flood_let_in": answered,
        "flood_refused": refused,
    }


async def _work(http: httpx2.AsyncClient, tenant: _Tenant, seconds: float) -> list[float]:
    """Ask at a steady rate, whatever the answers take; return how long each took, in seconds."""
    spans: list[float] = []
    began = time.perf_counter()

    async def ask(number: int) -> None:
        # From when it was due: an answer that is late must not hide those behind it.
        due = began + number / PER_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        answer = await http.get(
            "/api/v1/devices", headers=_as(tenant.tokens[number % len(tenant.tokens)])
        )
        spans.append(time.perf_counter() - due)
        answer.raise_for_status()

    await asyncio.gather(*[ask(number) for number in range(int(seconds * PER_S))])
    return spans


@contextlib.asynccontextmanager
async def _flooding(http: httpx2.AsyncClient, tenant: _Tenant) -> AsyncIterator[dict[str, int]]:
    counts = {"answered": 0, "refused": 0}

    async def ask(token: str) -> None:
        answer = await http.get("/api/v1/devices", headers=_as(token))
        counts["refused" if answer.status_code == 429 else "answered"] += 1

    async def flood() -> None:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began + number / FLOOD_PER_S - time.perf_counter()))
                tasks.create_task(ask(tenant.tokens[number % len(tenant.tokens)]))

    running = asyncio.create_task(flood())
    try:
        yield counts
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _found(http: httpx2.AsyncClient, platform: str, slug: str, *, users: int) -> _Tenant:
    """Open a tenant with some users, the platform's admin among them; return who may act in it."""
    created = await http.post(
        "/api/v1/tenants",
        json={"slug": slug, "name": slug, "admin": {"email": ADMIN_EMAIL, "name": "Ada"}},
        headers=_as(platform),
    )
    answer = created.raise_for_status().json()
    invitation = answer["admin"]["invitation"]["token"]
    tokens = [await _accept(http, invitation, ADMIN_PASSWORD)]
    for number in range(1, users):
        invited = await http.post(
            "/api/v1/users",
            json={"email": f"{slug}-{number}@plant.example", "name": "Ann", "roles": ["admin"]},
            headers=_as(tokens[0]),
        )
        token = invited.raise_for_status().json()["invitation"]["token"]
        tokens.append(await _accept(http, token, PASSWORD))
    return _Tenant(UUID(answer["id"]), tokens)


async def _accept(http: httpx2.AsyncClient, token: str, password: str) -> str:
    answer = await http.post(
        "/api/v1/auth/invitations/accept", json={"token": token, "password": password}
    )
    access: str = answer.raise_for_status().json()["access_token"]
    return access


async def _log_in(http: httpx2.AsyncClient, email: str, password: str) -> str:
    answer = await http.post("/api/v1/auth/login", json={"email": email, "password": password})
    token: str = answer.raise_for_status().json()["access_token"]
    return token


def _as(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


if __name__ == "__main__":
    main()
