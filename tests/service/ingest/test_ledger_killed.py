"""Whoever is killed whenever, the ledger says what the historian and the quarantine hold."""

import asyncio
import random
import sys
from uuid import uuid4

import asyncpg

from services.ingest.settings import Settings
from tests.database import DatabaseUrls

BATCHES = 120
KILLS = 6

WRITER = """
import asyncio, sys
from array import array
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

from libs.common.db.engine import Database
from libs.common.events.ingest import Gap, Refused, TelemetryReceived, Text
from services.ingest.store.landing import Landing, QuarantineQuota
from services.ingest.store.ledger import Folding

START = datetime(2026, 1, 1, tzinfo=UTC)
EVERYTHING = 2**62
writer, engine, tenant_id, number, count, *pairs = sys.argv[1:]
tenant_id, number = UUID(tenant_id), int(number)
known = [(UUID(device), int(temp), int(note)) for device, temp, note in
         (pair.split(":") for pair in pairs)]

def batch(n):
    # Each begins where the one before was at its middle, so that half of it is there already.
    us = int(START.timestamp()) * 1_000_000 + n * 5
    points = [(temp, us + i) for _, temp, _ in known for i in range(10)]
    return TelemetryReceived(
        id=uuid5(tenant_id, str(n)),
        at=START + timedelta(minutes=n),
        shard=0,
        tenants=array("i", [number] * len(points)).tobytes(),
        series=array("i", [series for series, _ in points]).tobytes(),
        ts=array("q", [ts for _, ts in points]).tobytes(),
        values=array("d", [1.0] * len(points)).tobytes(),
        quality=bytes(len(points)),
        texts=[Text(number, note, us, "open", 0) for _, _, note in known],
        refused=[Refused(tenant_id, device, "malformed", "", None, b"?") for device, _, _ in known],
        gaps=[Gap(tenant_id, known[0][0], 2)],
    )

async def main():
    landing = Landing(writer, quota=QuarantineQuota())
    folding = Folding(Database(engine, across_tenants=True))
    await landing.open()
    await landing.make_days_ahead(START.date())
    print("ready", flush=True)
    for n in range(0, int(count), 2):
        _, folded = await asyncio.gather(
            landing.land([batch(n), batch(n + 1)]), folding.fold(1 + n % 3, EVERYTHING)
        )
    while await folding.fold(50, EVERYTHING):
        pass
    print("done", flush=True)

asyncio.run(main())
"""


async def test_a_writer_that_is_killed_at_any_moment_counts_all_of_it_once(
    settings: Settings, database_urls: DatabaseUrls
) -> None:
    tenant_id = uuid4()
    admin = await asyncpg.connect(database_urls.admin)
    try:
        number = await admin.fetchval(
            "INSERT INTO historian.tenant (id) VALUES ($1) RETURNING number", tenant_id
        )
        devices = {}
        for _ in range(4):
            device = uuid4()
            devices[device] = [
                await admin.fetchval(
                    "INSERT INTO historian.series (tenant, device_id, metric, kind)"
                    " VALUES ($1, $2, $3, $4) RETURNING id",
                    number,
                    device,
                    metric,
                    kind,
                )
                for metric, kind in (("temp", 0), ("note", 2))
            ]
        arguments = [
            *(settings.historian_writer_url.get_secret_value(), database_urls.engine("ingest")),
            *(str(tenant_id), str(number), str(BATCHES)),
            *(f"{device}:{temp}:{note}" for device, (temp, note) in devices.items()),
        ]
        for _ in range(KILLS):
            await _work(arguments, kill_after_s=random.uniform(0, 0.6))
        await _work(arguments, kill_after_s=None)

        ledger = {
            row["device_id"]: tuple(row)[1:]
            for row in await admin.fetch(
                "SELECT device_id, sum(accepted)::int, sum(duplicates)::int,"
                " sum(quarantined)::int, sum(gaps)::int, sum(missing)::int"
                " FROM ingest.ledger WHERE tenant_id = $1 GROUP BY device_id",
                tenant_id,
            )
        }
        stored = 5 * BATCHES + 5 + BATCHES
        first = next(iter(devices))
        assert ledger == {
            device: (
                stored,
                11 * BATCHES - stored,
                BATCHES,
                *((BATCHES, 2 * BATCHES) if device == first else (0, 0)),
            )
            for device in devices
        }
        held = await admin.fetchval(
            "SELECT (SELECT count(*) FROM historian.points WHERE tenant = $1)"
            " + (SELECT count(*) FROM historian.texts WHERE tenant = $1)",
            number,
        )
        quarantined = await admin.fetchval(
            "SELECT count(*) FROM ingest.quarantine WHERE tenant_id = $1", tenant_id
        )
        assert held == sum(counts[0] for counts in ledger.values())
        assert quarantined == sum(counts[2] for counts in ledger.values())
        billed = await admin.fetchval(
            "SELECT sum(amount) FROM ingest.usage WHERE tenant_id = $1"
            " AND resource = 'points_per_day'",
            tenant_id,
        )
        assert billed == held, "what a tenant is billed for is what is stored, to the point"
    finally:
        await admin.close()


async def _work(arguments: list[str], kill_after_s: float | None) -> None:
    """Let a writer work, to its end or until it is killed."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    try:
        assert await writer.stdout.readline() == b"ready\n"
        if kill_after_s is None:
            assert await asyncio.wait_for(writer.stdout.readline(), 60) == b"done\n"
            return
        # Not a wait for something: the moment is any.
        await asyncio.sleep(kill_after_s)
    finally:
        if writer.returncode is None:
            writer.kill()
        await writer.wait()
