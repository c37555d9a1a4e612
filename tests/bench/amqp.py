"""How many messages a second come in over AMQP: published with confirms, stored, acknowledged.

`python -m tests.bench.amqp --json`: a private cluster, its broker and another for devices; the clients
are processes of their own, on the same machine.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx2
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from pamqp import body, commands, frame, header

from deploy.local.cluster import INGEST, INGEST_WRITER, Cluster
from deploy.local.devices_broker import DevicesBroker
from libs.common.auth.principal import HEADER, Kind, Principal, PrincipalSigner
from libs.common.clock import SystemClock
from tests.amqp_raw import CHANNEL, RawDevice
from tests.bench.meter import spent
from tests.bench.report import percentile_ms, print_report, say
from tests.key_set import published

UNCONFIRMED = 500
"""Messages of one device that are not confirmed yet, at most."""
POINTS = 3


class Publisher:
    """A device with prepared frames: the bench measures the platform, not a client's library."""

    def __init__(self, device: RawDevice, device_id: str) -> None:
        self._device, self._id = device, device_id
        self.delays: list[float] = []

    async def publish(self, count: int, first_ts: int) -> None:
        """Publish so many messages, and return when all are confirmed."""
        method = frame.marshal(
            commands.Basic.Publish(exchange="devices", routing_key=f"{self._id}.telemetry"), CHANNEL
        )
        properties = commands.Basic.Properties(
            content_type="application/json", delivery_mode=2, user_id=self._id
        )
        sent, confirmed, times = 0, 0, []
        while confirmed < count:
            frames = []
            now = time.monotonic()
            while sent < count and sent - confirmed < UNCONFIRMED:
                values = {f"m{n}": float(sent % 1000) for n in range(POINTS)}
                payload = json.dumps({"ts": first_ts + sent, "values": values}).encode()
                frames += [
                    method,
                    frame.marshal(header.ContentHeader(0, len(payload), properties), CHANNEL),
                    frame.marshal(body.ContentBody(payload), CHANNEL),
                ]
                times.append(now)
                sent += 1
            self._device.write(b"".join(frames))
            upto = confirmed
            while upto == confirmed:
                ack = await self._device.next(commands.Basic.Ack)
                # One by one, or all up to here: what is confirmed is counted either way.
                upto = max(ack.delivery_tag, upto) if ack.multiple else upto + 1
                now = time.monotonic()
                self.delays += [now - times[n] for n in range(confirmed, min(upto, sent))]
            confirmed = upto

    def close(self) -> None:
        """Leave."""
        self._device.close()


def _publish_all(
    port: int, devices: list[tuple[str, str]], each: int, first_ts: int
) -> list[float]:
    async def run() -> list[float]:
        publishers = [
            Publisher(await RawDevice.connect(port, device_id, token), device_id)
            for device_id, token in devices
        ]
        await asyncio.gather(*(publisher.publish(each, first_ts) for publisher in publishers))
        for publisher in publishers:
            publisher.close()
        return [delay for publisher in publishers for delay in publisher.delays]

    return asyncio.run(run())


async def stored_of(admin_url: str, tenant_id: UUID, until: int = 0) -> int:
    """Return how many points of the tenant are stored; wait for so many, two minutes at most."""
    connection = await asyncpg.connect(admin_url)
    deadline = time.monotonic() + 120
    try:
        while True:
            count: int = await connection.fetchval(
                "SELECT count(*) FROM historian.points p"
                " JOIN historian.tenant t ON t.number = p.tenant WHERE t.id = $1",
                tenant_id,
            )
            if count >= until or time.monotonic() > deadline:
                return count
            # Rarely: to count is work too, on the machine that is measured.
            await asyncio.sleep(0.5)
    finally:
        await connection.close()


def run(messages: int, devices: int, processes: int) -> dict[str, object]:
    """Run the bench; return its figures."""
    key = ec.generate_private_key(ec.SECP256R1())
    with (
        tempfile.TemporaryDirectory(prefix="iiot-bench-") as folder,
        published(key, "bench") as jwks_url,
    ):
        directory = Path(folder)
        directory.chmod(0o755)  # the servers' own user must be able to enter
        cluster = Cluster(
            directory / "cluster",
            members=(INGEST, INGEST_WRITER),
            env={"LOG_LEVEL": "warning", "GATEWAY_JWKS_URL": jwks_url},
            amqp=True,
        )
        try:
            say("starting ingest and its servers")
            cluster.start()
            assert cluster.devices_broker is not None
            return _measure(cluster, cluster.devices_broker, key, messages, devices, processes)
        except Exception:
            say(cluster.log_tail("ingest"))
            raise
        finally:
            cluster.stop()


def _measure(
    cluster: Cluster,
    broker: DevicesBroker,
    key: ec.EllipticCurvePrivateKey,
    messages: int,
    devices: int,
    processes: int,
) -> dict[str, object]:
    tenant_id = uuid4()
    principal = Principal(
        subject=uuid4(),
        tenant_id=tenant_id,
        kind=Kind.USER,
        permissions=frozenset({"*"}),
        platform_admin=False,
    )
    headers = {HEADER: PrincipalSigner(key, "bench").sign(principal, SystemClock().now())}
    registered: list[tuple[str, str]] = []
    with httpx2.Client(base_url=cluster.url("ingest"), headers=headers) as http:
        for number in range(devices):
            answer = http.post("/api/v1/devices", json={"name": f"device {number}", "type": "pump"})
            answer.raise_for_status()
            made = answer.json()
            registered.append((made["id"], made["credentials"]["token"]))
    first_ts = int(time.time() * 1000) - 3_600_000
    pids = {
        "ingest": cluster.pid("ingest"),
        "writer": cluster.pid("ingest-writer"),
        "devices broker": broker.server.pid,
        "bus": cluster.rabbitmq.pid,  # type: ignore[attr-defined]  # a bench runs private servers
        "postgres": cluster.postgres.pid,  # type: ignore[attr-defined]  # likewise
    }

    def round_of(count: int, start_ts: int) -> tuple[float, float, list[float]]:
        each = count // devices
        parts = [registered[n::processes] for n in range(processes)]
        before = asyncio.run(stored_of(cluster.admin_url, tenant_id))
        began = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            delays = pool.starmap(
                _publish_all, [(broker.server.port, part, each, start_ts) for part in parts]
            )
        confirmed_s = time.monotonic() - began
        asyncio.run(stored_of(cluster.admin_url, tenant_id, before + each * devices * POINTS))
        return confirmed_s, time.monotonic() - began, [d for part in delays for d in part]

    say("warming up")
    round_of(devices * 20, first_ts)
    say(f"publishing {messages} messages of {POINTS} points")
    before = spent(pids)
    each = messages // devices
    confirmed_s, stored_s, delays = round_of(messages, first_ts + 1_000_000)
    cost = spent(pids) - before
    stored = asyncio.run(stored_of(cluster.admin_url, tenant_id))
    sent = each * devices
    return {
        "messages_per_s": round(sent / stored_s),
        "confirmed_per_s": round(sent / confirmed_s),
        "confirm_p99_ms": percentile_ms(np.array(delays), 99),
        "cpu_s_per_million_messages": round(cost.total_s / sent * 1_000_000, 1),
        "cpu_s": {name: round(seconds, 2) for name, seconds in cost.by_process.items()},
        "messages": sent,
        "devices": devices,
        "lost": (sent + 20 * devices) * POINTS - stored,
    }


def main() -> None:
    """Run the bench and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.amqp", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    figures = run(chosen.messages, chosen.devices, chosen.processes)
    print_report(figures, mode="cluster", as_json=chosen.json)  # type: ignore[arg-type]  # figures are


if __name__ == "__main__":
    main()
