"""Devices that never give up, and a ledger of what they sent, what was acknowledged, what is stored.

Each device sends one message of three metrics after the other, each with a time of its own, and
sends again, with that same time, what was not acknowledged when its connection broke. At the end
three sets are compared: acknowledged minus stored must be empty, and so must stored minus sent.
"""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import aiomqtt
import asyncpg

from tests.waiting import until

METRICS = ("temp", "pressure", "flow")
PAUSE_S = 0.02
RECONNECT_S = 0.2

PointKey = tuple[UUID, str, int]
"""Device, metric, time in ms."""


@dataclass(slots=True)
class Ledger:
    """What became of every point."""

    sent: set[PointKey] = field(default_factory=set)
    acknowledged: set[PointKey] = field(default_factory=set)
    reconnects: int = 0

    def compare(self, stored: Counter[PointKey]) -> str:
        """Return what is wrong, or an empty text."""
        wrong = []
        if lost := self.acknowledged - stored.keys():
            wrong.append(f"{len(lost)} of {len(self.acknowledged)} acknowledged points are lost")
        if strange := stored.keys() - self.sent:
            wrong.append(f"{len(strange)} stored points were never sent")
        if twice := [key for key, count in stored.items() if count > 1]:
            wrong.append(f"{len(twice)} points are stored twice")
        return "; ".join(wrong)


class Fleet:
    """Devices at work, until told to stop."""

    def __init__(self, port: int, devices: dict[UUID, str]) -> None:
        self._port = port
        self._devices = devices
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.ledger = Ledger()

    async def __aenter__(self) -> "Fleet":
        self._tasks = [
            asyncio.create_task(self._work(device_id, token))
            for device_id, token in self._devices.items()
        ]
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop, once every device has had its last message acknowledged."""
        self._stopping = True
        _, late = await asyncio.wait(self._tasks, timeout=60)
        for task in late:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not late, f"{len(late)} devices never got their last acknowledgement: {results}"

    async def works(self, points: int, *, within_s: float) -> None:
        """Wait until so many more points are acknowledged."""
        enough = len(self.ledger.acknowledged) + points
        await until(
            lambda: len(self.ledger.acknowledged) >= enough,
            f"{points} more points acknowledged",
            within_s=within_s,
        )

    async def _work(self, device_id: UUID, token: str) -> None:
        unacknowledged: list[tuple[int, str]] = []
        last = 0
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    hostname="127.0.0.1",
                    port=self._port,
                    identifier=str(device_id),
                    username=str(device_id),
                    password=token,
                    timeout=30,
                ) as client:
                    while True:
                        if not unacknowledged:
                            if self._stopping:
                                return
                            last = max(last + 1, int(datetime.now(UTC).timestamp() * 1000))
                            unacknowledged.append((last, _payload(last)))
                            self.ledger.sent |= _keys(device_id, last)
                        ts, payload = unacknowledged[0]
                        await client.publish(
                            f"v1/devices/{device_id}/telemetry", payload, qos=1, timeout=30
                        )
                        self.ledger.acknowledged |= _keys(device_id, ts)
                        unacknowledged.pop(0)
                        await asyncio.sleep(PAUSE_S)
            self.ledger.reconnects += 1
            await asyncio.sleep(RECONNECT_S)


async def stored_points(admin_url: str, devices: list[UUID]) -> Counter[PointKey]:
    """Return every stored point of the devices, with how often it is there."""
    connection = await asyncpg.connect(admin_url)
    try:
        rows = await connection.fetch(
            "SELECT s.device_id, s.metric, (extract(epoch FROM p.ts) * 1000)::bigint AS ms"
            " FROM historian.series s JOIN historian.points p"
            " ON p.tenant = s.tenant AND p.series = s.id WHERE s.device_id = ANY($1)",
            devices,
        )
    finally:
        await connection.close()
    return Counter((row["device_id"], row["metric"], row["ms"]) for row in rows)


def _keys(device_id: UUID, ts: int) -> set[PointKey]:
    return {(device_id, metric, ts) for metric in METRICS}


def _payload(ts: int) -> str:
    return json.dumps({"ts": ts, "values": dict.fromkeys(METRICS, ts % 1000)})
