"""Devices of every protocol at work, and a ledger of what became of each point.

The devices are the simulator's: they keep what they measure until it is acknowledged, and send it
again, with its time, when their connection breaks before. At the end three sets are compared:
acknowledged minus stored must be empty, and so must stored minus sent.
"""

import asyncio
import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from clients.simulator.devices.device import CredentialRefused, Device, Reading
from clients.simulator.protocols import Doors, make_device
from clients.simulator.station import Credential
from tests.waiting import until

log = logging.getLogger(__name__)

METRICS = ("temp", "pressure", "flow")
PAUSE_S = 0.03
PATIENCE_S = 10.0
"""How long a device waits for an answer before it begins anew."""
RECONNECT_S = 1.0
"""The longest pause before it does, unless it is told otherwise."""
KNOCK_AGAIN = {"amqp", "coap"}
"""Who may be refused without being wrong: the devices' broker refuses whom it cannot ask ingest about, and
an endpoint may not have heard yet that the tenant allows plain CoAP. All others know better."""
ENTERING_AT_ONCE = 20
"""Devices that connect at once: a whole fleet's handshakes would time each other out."""
STALLED_S = 60.0
LAST_S = 90.0
LEAVE_S = 5.0
COMPARED_AT_ONCE = 200
"""Devices. What they sent is compared part by part, so that a large fleet's is never in memory whole."""


@dataclass(frozen=True, slots=True)
class Member:
    """A registered device, and what it speaks."""

    protocol: str
    device_id: UUID
    token: str = field(repr=False)


@dataclass(slots=True)
class Entry:
    """What became of a device's messages, by their time in ms: eight bytes each."""

    sent: "array[int]" = field(default_factory=lambda: array("q"))
    acknowledged: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many points were acknowledged, and what is wrong with those that are stored."""

    acknowledged: int = 0
    lost: int = 0
    """Acknowledged, and not stored."""
    strange: int = 0
    """Stored, and never sent."""
    twice: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.strange + other.strange,
            self.twice + other.twice,
        )

    def __str__(self) -> str:
        """What is wrong; empty if nothing is."""
        wrong = (
            (self.lost, f"of {self.acknowledged} acknowledged points are lost"),
            (self.strange, "stored points were never sent"),
            (self.twice, "points are stored twice"),
        )
        return "; ".join(f"{count} {what}" for count, what in wrong if count)


class Ledger:
    """What became of every message of a fleet; each has a point of every metric."""

    def __init__(self, members: Sequence[Member], metrics: Sequence[str] = METRICS) -> None:
        self._members = members
        self._metrics = metrics
        self.entries: dict[UUID, Entry] = {member.device_id: Entry() for member in members}

    @property
    def sent(self) -> int:
        """How many points were measured and sent, acknowledged or not."""
        return sum(len(entry.sent) for entry in self.entries.values()) * len(self._metrics)

    async def compare(self, admin_url: str, *, within_s: float = 60.0) -> dict[str, Comparison]:
        """Wait until what was acknowledged is stored, no longer than that; return how it is, by protocol."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        found = {member.protocol: Comparison() for member in self._members}
        database = await asyncpg.connect(admin_url)
        try:
            for protocol in found:
                own = [m.device_id for m in self._members if m.protocol == protocol]
                for start in range(0, len(own), COMPARED_AT_ONCE):
                    devices = own[start : start + COMPARED_AT_ONCE]
                    part = self._compare(devices, await _stored(database, devices))
                    while part.lost and loop.time() < deadline:
                        await asyncio.sleep(0.2)
                        part = self._compare(devices, await _stored(database, devices))
                    found[protocol] += part
        finally:
            await database.close()
        return found

    async def verdict(self, admin_url: str, *, within_s: float = 60.0) -> str:
        """As `compare`, in words: what is wrong, or an empty text."""
        found = await self.compare(admin_url, within_s=within_s)
        return "; ".join(f"{protocol}: {part}" for protocol, part in found.items() if str(part))

    def _compare(self, devices: Iterable[UUID], stored: "Counter[_Point]") -> Comparison:
        sent: set[_Point] = set()
        acknowledged: set[_Point] = set()
        for device_id in devices:
            entry = self.entries[device_id]
            for into, times in ((sent, entry.sent), (acknowledged, entry.acknowledged)):
                into.update((device_id, m, ts) for ts in times for m in self._metrics)
        return Comparison(
            acknowledged=len(acknowledged),
            lost=len(acknowledged - stored.keys()),
            strange=len(stored.keys() - sent),
            twice=sum(count > 1 for count in stored.values()),
        )


_Point = tuple[UUID, str, int]
"""Device, metric, time in ms."""


class Fleet:
    """Devices at work for as long as the block lasts.

    Leaving it waits until everything measured is acknowledged; fails if a device never gets there,
    or if anything was refused.
    """

    def __init__(
        self,
        doors: Doors,
        members: Sequence[Member],
        *,
        pause_s: float = PAUSE_S,
        patience_s: float = PATIENCE_S,
        reconnect_s: float = RECONNECT_S,
        most_waiting: int = 4,
    ) -> None:
        """`pause_s`: between two messages of a device, which measures nothing while `most_waiting` wait."""
        self.members = members
        self.ledger = Ledger(members)
        self.hurry = 1.0
        """How many times faster than usual devices measure; may change at any time."""
        self.entered = 0
        """How many devices have been in; the others still come in, some at once."""
        self._pause_s = pause_s
        self._reconnect_s = reconnect_s
        self._most_waiting = most_waiting
        self._acknowledged = Counter({member.protocol: 0 for member in members})
        self._accounts = {
            str(member.device_id): (member.protocol, self.ledger.entries[member.device_id])
            for member in members
        }
        self._devices = [self._device(member, doors, patience_s) for member in members]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Fleet":
        self._measuring = asyncio.create_task(self._measure())
        self._entering = asyncio.create_task(self._enter())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._measuring.cancel()
        self._entering.cancel()
        try:
            if error[0] is None:
                await self.settles()
        finally:
            await self._leave()

    async def comes_in(self, *, stalled_s: float = STALLED_S) -> None:
        """Wait until all devices have been in; fail if none more comes in for so long."""
        while not self._entering.done():
            before = self.entered
            await asyncio.wait([self._entering], timeout=stalled_s)
            self._check()
            if self.entered == before and not self._entering.done():
                message = f"nobody more came in within {stalled_s} s"
                raise AssertionError(f"{message}; these never were: {self.never_in}")
        self._entering.result()

    async def works(self, points: int, *, within_s: float) -> None:
        """Wait until so many more points of every protocol are acknowledged."""
        enough = {name: count + points for name, count in self.acknowledged.items()}

        def behind() -> dict[str, int]:
            self._check()
            now = self.acknowledged
            return {name: enough[name] - now[name] for name in enough if now[name] < enough[name]}

        try:
            await until(lambda: not behind(), "enough acknowledged", within_s=within_s)
        except AssertionError:
            message = f"of {points} more points these were not acknowledged in {within_s} s"
            raise AssertionError(f"{message}: {behind()}") from None

    async def settles(self, *, within_s: float = LAST_S) -> None:
        """Measure no more, and wait until all that was measured is acknowledged."""
        self._measuring.cancel()
        self._entering.cancel()

        def waiting() -> dict[str, int]:
            self._check()
            counts: Counter[str] = Counter()
            for member, device in zip(self.members, self._devices, strict=True):
                counts[member.protocol] += device.backlog
            return dict(+counts)

        try:
            await until(lambda: not waiting(), "the last acknowledgements", within_s=within_s)
        except AssertionError:
            message = f"messages that were never acknowledged, after {within_s} s more"
            raise AssertionError(f"{message}: {waiting()}") from None
        refused = [d for d in self._devices if d.stats.rejected or d.stats.dropped]
        assert not refused, f"{refused[0]} and others lost what they measured: {refused[0].stats}"

    @property
    def acknowledged(self) -> dict[str, int]:
        """How many points of each protocol are acknowledged."""
        return {name: count * len(METRICS) for name, count in self._acknowledged.items()}

    @property
    def connected(self) -> int:
        """How many devices are in."""
        return sum(device.is_connected for device in self._devices)

    @property
    def never_in(self) -> dict[str, int]:
        """How many devices have not been in yet, by protocol; those that have all been in are left out."""
        pairs = zip(self.members, self._devices, strict=True)
        return dict(Counter(m.protocol for m, device in pairs if not device.stats.connects))

    @property
    def waiting(self) -> int:
        """Messages that are measured and not acknowledged."""
        return sum(device.backlog for device in self._devices)

    @property
    def reconnects(self) -> int:
        """How often devices came back."""
        return sum(max(0, device.stats.connects - 1) for device in self._devices)

    def _device(self, member: Member, doors: Doors, patience_s: float) -> Device:
        credential = Credential(str(member.device_id), member.token)
        device = make_device(
            member.protocol, doors, credential, on_acknowledged=self._note_acknowledged
        )
        device.timeout = patience_s
        device.backoff.longest = self._reconnect_s
        return device

    def _note_acknowledged(self, device_id: str, reading: Reading) -> None:
        protocol, entry = self._accounts[device_id]
        self._acknowledged[protocol] += 1
        entry.acknowledged.append(reading.ts)

    async def _enter(self) -> None:
        """Let the devices come in, some at once."""
        entering: list[Device] = []
        for member, device in zip(self.members, self._devices, strict=True):
            # A device that has no connection, but requests, is in when the first is answered.
            self._offer(member, device)
            self._tasks.append(asyncio.create_task(self._talk(member, device)))
            entering.append(device)
            while len(entering) == ENTERING_AT_ONCE:
                entering = await self._still_out(entering)
        while entering:
            entering = await self._still_out(entering)

    async def _still_out(self, entering: list[Device]) -> list[Device]:
        await asyncio.sleep(0.005)
        out = [device for device in entering if not device.stats.connects]
        self.entered += len(entering) - len(out)
        return out

    async def _measure(self) -> None:
        """Let each device that has been in measure in its turn, evenly over the pause between two messages."""
        loop = asyncio.get_running_loop()
        seen, turn, owed = loop.time(), 0, 0.0
        while True:
            now = loop.time()
            each_s = self._pause_s / self.hurry / len(self._devices)
            # What could not be measured in time is left out.
            owed += min(now - seen, self._pause_s) / each_s
            seen = now
            while owed >= 1:
                number = turn % len(self._devices)
                if self._devices[number].stats.connects:
                    self._offer(self.members[number], self._devices[number])
                turn += 1
                owed -= 1
            # Not longer: `hurry` may change meanwhile.
            await asyncio.sleep(min(max(0.002, (1 - owed) * each_s), 0.1))

    def _offer(self, member: Member, device: Device) -> None:
        if device.backlog >= self._most_waiting:
            return
        ts = int(datetime.now(UTC).timestamp() * 1000)
        reading = device.offer(ts, dict.fromkeys(METRICS, float(ts % 1000)))
        self.ledger.entries[member.device_id].sent.append(reading.ts)

    async def _talk(self, member: Member, device: Device) -> None:
        while True:
            try:
                await device.run()
            except CredentialRefused:
                if member.protocol not in KNOCK_AGAIN:
                    raise
                await asyncio.sleep(RECONNECT_S)

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        # Not gathered: that would wait for ever for a device whose library swallows its cancellation.
        _, staying = await asyncio.wait(
            [self._measuring, self._entering, *self._tasks], timeout=LEAVE_S
        )
        if staying:
            who = Counter(
                m.protocol for m, t in zip(self.members, self._tasks, strict=False) if t in staying
            )
            log.warning("these devices do not leave: %s", dict(who))

    def _check(self) -> None:
        """Fail if a device has given up."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error


async def _stored(database: asyncpg.Connection, devices: Sequence[UUID]) -> Counter[_Point]:
    """Return every stored point of the devices, with how often it is there."""
    rows = await database.fetch(
        "SELECT s.device_id, s.metric, (extract(epoch FROM p.ts) * 1000)::bigint AS ms"
        " FROM historian.series s JOIN historian.points p"
        " ON p.tenant = s.tenant AND p.series = s.id WHERE s.device_id = ANY($1)",
        list(devices),
    )
    return Counter((row["device_id"], row["metric"], row["ms"]) for row in rows)
