"""Invariant 1: acknowledged means stored safely, whatever is killed whenever.

Invariant 2 beside it: what is delivered twice shows once.
"""

import asyncio
import time
from collections.abc import Callable
from uuid import UUID

import pytest

from deploy.local.cluster import Cluster
from tests.faults.fleet import Fleet, stored_points
from tests.waiting import until

BEFORE = 300
"""Points acknowledged before anything breaks."""
AFTER = 600
"""Points acknowledged after that: the platform is at work again."""

pytestmark = pytest.mark.timeout(300)


async def endure(
    cluster: Cluster, devices: dict[UUID, str], break_and_mend: Callable[[], None], times: int
) -> None:
    """Let the fleet work while something is broken and mended; nothing may be missing at the end."""
    async with Fleet(cluster.mqtt_port, devices) as fleet:
        for _ in range(times):
            await fleet.works(BEFORE, within_s=60)
            await asyncio.to_thread(break_and_mend)
            await fleet.works(AFTER, within_s=90)
    missing = set(fleet.ledger.acknowledged)

    async def all_stored() -> bool:
        missing.difference_update(await stored_points(cluster.admin_url, list(devices)))
        return not missing

    await until(all_stored, "every acknowledged point stored", within_s=60)
    stored = await stored_points(cluster.admin_url, list(devices))
    assert fleet.ledger.compare(stored) == ""


async def test_ingest_is_killed_in_the_middle_of_batches(
    cluster: Cluster, devices: dict[UUID, str]
) -> None:
    def kill() -> None:
        cluster.kill("ingest")
        cluster.restart("ingest")

    await endure(cluster, devices, kill, times=3)


async def test_the_writer_is_killed(cluster: Cluster, devices: dict[UUID, str]) -> None:
    def kill() -> None:
        cluster.kill("ingest-writer")
        cluster.restart("ingest-writer")

    await endure(cluster, devices, kill, times=3)


async def test_rabbitmq_is_killed(cluster: Cluster, devices: dict[UUID, str]) -> None:
    def kill() -> None:
        cluster.rabbitmq.kill()
        cluster.rabbitmq.start()

    await endure(cluster, devices, kill, times=1)


async def test_postgresql_is_killed(cluster: Cluster, devices: dict[UUID, str]) -> None:
    def kill() -> None:
        cluster.postgres.kill()
        cluster.postgres.start()

    await endure(cluster, devices, kill, times=2)


@pytest.mark.long
@pytest.mark.parametrize("member", ["ingest", "ingest-writer"])
async def test_a_process_is_killed_again_and_again(
    cluster: Cluster, devices: dict[UUID, str], member: str
) -> None:
    def kill() -> None:
        cluster.kill(member)
        cluster.restart(member)

    await endure(cluster, devices, kill, times=10)


@pytest.mark.long
async def test_postgresql_is_stopped_for_a_minute(
    cluster: Cluster, devices: dict[UUID, str]
) -> None:
    def stop() -> None:
        cluster.postgres.stop()
        time.sleep(60)  # the length of the outage is the fault itself
        cluster.postgres.start()

    await endure(cluster, devices, stop, times=1)
