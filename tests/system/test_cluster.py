"""The platform as a cluster: a process a service, real servers, and one door for people."""

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import httpx2
import pytest
from standardwebhooks import Webhook
from websockets.asyncio.client import connect

from deploy.edge.catcher import Catcher
from deploy.local.cluster import MEMBERS, Cluster, Member
from deploy.local.processes import LOOPBACK, free_port
from tests.waiting import until

EMAIL = "admin@localhost"
PASSWORD = "correct horse battery staple"
HOT, COOL = 96.0, 71.0
"""A bearing that breaks the rule, and one that is well again."""

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Installation:
    """The running cluster, where it sends its mail and its webhooks, and its first admin's login."""

    cluster: Cluster
    smtp_port: int
    hook_port: int
    access_token: str

    @property
    def api(self) -> str:
        return f"{self.cluster.url('gateway')}/api/v1"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Start everything, with a second process of rules."""
    smtp_port, hook_port = free_port(), free_port()
    cluster = Cluster(
        tmp_path_factory.mktemp("cluster"),
        members=(*MEMBERS, Member("rules-2", "rules")),
        env={
            "TENANCY_FIRST_ADMIN_EMAIL": EMAIL,
            "TENANCY_FIRST_ADMIN_PASSWORD": PASSWORD,
            "ALERTING_SMTP_HOST": LOOPBACK,
            "ALERTING_SMTP_PORT": str(smtp_port),
            "ALERTING_SMTP_SECURITY": "none",
            "ALERTING_WEBHOOK_ALLOW": f"{LOOPBACK}:{hook_port}",
        },
    )
    try:
        cluster.start()
        login = httpx2.post(
            f"{cluster.url('gateway')}/api/v1/auth/login",
            json={"email": EMAIL, "password": PASSWORD},
            trust_env=False,
        )
        assert login.status_code == 200, login.text + cluster.log_tail("gateway")
        yield Installation(cluster, smtp_port, hook_port, login.json()["access_token"])
    finally:
        cluster.stop()


@dataclass(slots=True)
class Device:
    """A machine at the plant: what it is called, and what it connects with."""

    id: str
    token: str
    mqtt: aiomqtt.Client
    _last: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def sends(self, **values: float) -> None:
        """Send one reading, later than all before; on return it is acknowledged."""
        self._last = max(datetime.now(UTC), self._last + timedelta(milliseconds=1))
        await self.publishes([{"ts": self._last.isoformat(), "values": values}])

    async def publishes(self, readings: Sequence[dict[str, Any]]) -> None:
        """Send readings as they are."""
        await self.mqtt.publish(f"v1/devices/{self.id}/telemetry", json.dumps(readings), qos=1)


@dataclass(slots=True)
class Site:
    """The plant as its engineer sees it: through the gateway, and nothing else."""

    http: httpx2.AsyncClient
    cluster: Cluster

    async def ask(self, method: str, path: str, *, status: int = 200, **more: Any) -> Any:
        """Ask the API; fail unless it answers with this status."""
        answer = await self.http.request(method, path, **more)
        assert answer.status_code == status, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    @contextlib.asynccontextmanager
    async def device(self, name: str) -> AsyncIterator[Device]:
        """Register a device and let it connect."""
        made = await self.ask("POST", "/devices", json={"name": name, "type": "pump"}, status=201)
        known = made["credentials"]
        async with aiomqtt.Client(
            LOOPBACK,
            self.cluster.mqtt_port,
            identifier=known["username"],
            username=known["username"],
            password=known["token"],
        ) as mqtt:
            yield Device(made["id"], known["token"], mqtt)

    async def watch_bearing(self, device: Device) -> str:
        """Make the rule: too hot above 90, well again at 80. Return its id."""
        rule = await self.ask(
            "POST",
            "/rules",
            status=201,
            json={
                "name": "bearing too hot",
                "type": "threshold",
                "device_id": device.id,
                "metric": "bearing",
                "condition": {"operator": "gt", "value": 90, "clear_value": 80},
                "severity": "critical",
            },
        )
        made: str = rule["id"]
        return made

    async def alerts(self, device: Device, **which: str) -> list[dict[str, Any]]:
        """Return the device's alerts, the newest first."""
        listed = await self.ask("GET", "/alerts", params={"device_id": device.id, **which})
        found: list[dict[str, Any]] = listed["items"]
        return found

    async def has_open(self, device: Device, *, count: int, **send: float) -> bool:
        """Let the device send, then look whether it has so many open alerts.

        A rule or a model is in force within a second of its making: until then nothing fires.
        """
        await device.sends(**send)
        return len(await self.alerts(device, state="open")) == count


@pytest.fixture
async def site(installation: Installation) -> AsyncIterator[Site]:
    """The plant, and an engineer who is logged in."""
    headers = {"authorization": f"Bearer {installation.access_token}"}
    async with httpx2.AsyncClient(
        base_url=installation.api, headers=headers, trust_env=False, timeout=30
    ) as http:
        yield Site(http, installation.cluster)


@pytest.fixture
async def inbox(installation: Installation, tmp_path: Path) -> AsyncIterator[Catcher]:
    """A mail server and a web server, both someone else's."""
    catcher = Catcher(tmp_path, smtp_port=installation.smtp_port, http_port=installation.hook_port)
    await catcher.start()
    yield catcher
    await catcher.stop()


@contextlib.asynccontextmanager
async def live(site: Site) -> AsyncIterator[list[dict[str, Any]]]:
    """Listen to what happens; the frames so far are in the list."""
    ticket = (await site.ask("POST", "/auth/ws-ticket", status=201))["ticket"]
    frames: list[dict[str, Any]] = []

    async def listen() -> None:
        async for frame in socket:
            frames.append(json.loads(frame))  # noqa: PERF401 - read by others while it grows

    address = site.cluster.url("gateway").replace("http", "ws", 1)
    async with connect(f"{address}/api/v1/ws?ticket={ticket}", proxy=None) as socket:
        listening = asyncio.create_task(listen())
        await socket.send(json.dumps({"subscribe": {}}))
        await until(lambda: bool(frames), "the connection is live")
        try:
            yield frames
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def heard(
    frames: list[dict[str, Any]], kind: str, matches: Callable[[dict[str, Any]], bool]
) -> Callable[[], bool]:
    """Return the condition that such a frame has come."""
    return lambda: any(frame["type"] == kind and matches(frame) for frame in frames)


async def test_a_hot_bearing_is_told_to_people_and_programs_and_dealt_with(
    site: Site, inbox: Catcher
) -> None:
    await site.ask(
        "POST",
        "/notification-channels",
        status=201,
        json={"name": "shift lead", "kind": "email", "config": {"address": "lead@plant.example"}},
    )
    hook = await site.ask(
        "POST",
        "/notification-channels",
        status=201,
        json={"name": "CMMS", "kind": "webhook", "config": {"url": inbox.hook_url("cmms")}},
    )

    def told(alert_id: str, kind: str) -> list[dict[str, Any]]:
        found: list[Any] = inbox.inbox.messages()
        return [m for m in found if m["kind"] == kind and alert_id in json.dumps(m)]

    async with live(site) as frames, site.device("press-7") as press:
        await site.watch_bearing(press)
        await until(
            lambda: site.has_open(press, count=1, bearing=HOT), "an alert is open", within_s=30
        )
        [alert] = await site.alerts(press)
        assert (alert["severity"], alert["state"], alert["device_name"]) == (
            "critical",
            "new",
            "press-7",
        )
        await until(lambda: bool(told(alert["id"], "mail")), "a mail", within_s=30)
        await until(lambda: bool(told(alert["id"], "webhook")), "a webhook", within_s=30)
        [mail] = told(alert["id"], "mail")
        assert mail["recipients"] == ["lead@plant.example"]
        assert "press-7" in mail["text"]
        [notice] = told(alert["id"], "webhook")
        body = Webhook(hook["secret"]).verify(notice["raw"], dict(notice["headers"]))
        assert (body["type"], body["data"]["device_name"]) == ("alert.opened", "press-7")

        for condition, what in (
            (
                heard(frames, "telemetry_update", lambda f: _has_point(f, press, HOT)),
                "the reading, live",
            ),
            (
                heard(frames, "device_update", lambda f: _is_online(f, press)),
                "that it is online, live",
            ),
            (heard(frames, "alert", lambda f: f["alert_id"] == alert["id"]), "the alert, live"),
        ):
            await until(condition, what)

    held = await site.ask("POST", f"/alerts/{alert['id']}/acknowledge", json={"note": "on my way"})
    assert (held["state"], held["acknowledged_by_name"]) == ("acknowledged", "admin")
    over = await site.ask("POST", f"/alerts/{alert['id']}/resolve", json={"note": "greased"})
    assert (over["state"], over["resolved_how"]) == ("resolved", "by_hand")
    history = await site.ask("GET", f"/alerts/{alert['id']}/history")
    assert len(history["items"]) >= 3
    await until(lambda: len(told(alert["id"], "webhook")) == 2, "its end is told", within_s=30)


async def test_what_mosquitto_pub_sends_is_there_to_be_computed_with(site: Site) -> None:
    mosquitto_pub = shutil.which("mosquitto_pub")
    if mosquitto_pub is None:
        pytest.fail("mosquitto_pub is missing: install mosquitto-clients")
    made = await site.ask("POST", "/devices", json={"name": "oven-1", "type": "oven"}, status=201)
    device_id, token = made["id"], made["credentials"]["token"]
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
    readings = [
        {"ts": (start + timedelta(seconds=10 * i)).isoformat(), "values": {"temp": 20.0 + i}}
        for i in range(11)
    ]
    command = [mosquitto_pub, "-h", LOOPBACK, "-p", str(site.cluster.mqtt_port)]
    command += ["-i", device_id, "-u", device_id, "-P", token, "-q", "1"]
    command += ["-t", f"v1/devices/{device_id}/telemetry", "-m", json.dumps(readings)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr

    where = f"{device_id}/temp"
    span = {"from": start.isoformat(), "to": (start + timedelta(seconds=110)).isoformat()}

    async def are_stored() -> bool:
        answer = await site.http.get(f"/analytics/timeseries/{where}", params=span)
        return answer.status_code == 200 and len(answer.json()["points"]) == len(readings)

    await until(are_stored, "all readings are stored", within_s=30)
    raw = await site.ask("GET", f"/analytics/timeseries/{where}", params=span)
    assert [point["value"] for point in raw["points"]] == [20.0 + i for i in range(11)]
    rate = await site.ask(
        "GET", f"/analytics/timeseries/{where}", params={**span, "function": "rate", "per": "min"}
    )
    assert {round(point["value"], 6) for point in rate["points"]} == {6.0}
    said = await site.ask("GET", f"/analytics/statistics/{where}", params=span)
    assert (said["count"], said["mean"], said["median"], said["min"], said["max"]) == (
        11,
        25.0,
        25.0,
        20.0,
        30.0,
    )


async def test_a_detector_learns_what_is_usual_and_an_outlier_becomes_an_alert(site: Site) -> None:
    async with site.device("spindle-3") as spindle:
        start = datetime.now(UTC) - timedelta(minutes=30)
        usual = [
            {
                "ts": (start + timedelta(seconds=10 * i)).isoformat(),
                "values": {"vibration": 2.0 + 0.1 * (i % 5)},
            }
            for i in range(120)
        ]
        await spindle.publishes(usual)
        model: dict[str, Any] = {}

        async def has_learnt() -> bool:
            answer = await site.http.post(
                "/ml/models",
                json={
                    "name": "spindle vibration",
                    "type": "robust_zscore",
                    "device_id": spindle.id,
                    "metric": "vibration",
                    "train": {"last": "PT1H"},
                    "min_points": len(usual),
                },
            )
            model.update(answer.json())
            return answer.status_code == 201

        await until(has_learnt, "the detector has all points to learn from", within_s=30)
        assert (model["n"], model["median"]) == (len(usual), pytest.approx(2.2))
        await until(
            lambda: site.has_open(spindle, count=1, vibration=9.5),
            "an outlier has become an alert",
            within_s=30,
        )
        [alert] = await site.alerts(spindle)
        assert (alert["source_kind"], alert["metric"]) == ("anomaly", "vibration")
        found = await site.ask("GET", "/ml/anomalies", params={"model_id": model["id"]})
        assert [(a["value"], a["device_id"]) for a in found["items"]] == [(9.5, spindle.id)]


async def test_a_dry_run_of_retention_names_the_day_whose_time_is_over_and_erases_nothing(
    site: Site,
) -> None:
    await site.ask(
        "POST", "/retention/policies", json={"data_type": "telemetry", "keep": 30}, status=201
    )
    long_ago = datetime.now(UTC) - timedelta(days=40)
    async with site.device("meter-1") as meter:
        await meter.publishes([{"ts": long_ago.isoformat(), "values": {"energy": 7.0}}])

    async def is_named() -> bool:
        run = await site.ask("POST", "/retention/run", json={"dry_run": True})
        return str(long_ago.date()) in {erased["day"] for erased in run["days"]}

    await until(is_named, "the day is named", within_s=30)
    kept = await site.ask(
        "GET",
        f"/analytics/timeseries/{meter.id}/energy",
        params={"from": long_ago.isoformat(), "to": datetime.now(UTC).isoformat()},
    )
    assert [point["value"] for point in kept["points"]] == [7.0]


async def test_a_session_goes_on_by_refreshing_and_ends_by_logging_out(site: Site) -> None:
    first = await site.ask("POST", "/auth/login", json={"email": EMAIL, "password": PASSWORD})
    second = await site.ask("POST", "/auth/refresh", json={"refresh_token": first["refresh_token"]})
    assert second["refresh_token"] != first["refresh_token"]
    mine = {"authorization": f"Bearer {second['access_token']}"}
    me = await site.ask("GET", "/auth/me", headers=mine)
    assert me["email"] == EMAIL
    await site.ask("POST", "/auth/logout", headers=mine, status=204)
    await site.ask("GET", "/auth/me", headers=mine, status=401)
    await site.ask("GET", "/alerts", headers=mine, status=401)
    await site.ask(
        "POST", "/auth/refresh", json={"refresh_token": second["refresh_token"]}, status=401
    )
    assert (await site.ask("GET", "/auth/me"))["email"] == EMAIL  # others go on


async def test_the_page_of_the_api_shows_every_service_once(site: Site) -> None:
    gateway = site.cluster.url("gateway")
    for path in ("/api/v1/docs", "/api/docs"):
        page = await site.http.get(gateway + path, follow_redirects=True)
        assert page.status_code == 200, path
        assert page.headers["content-type"].startswith("text/html")
    described = await site.ask("GET", "/openapi.json")
    tags = {tag["name"] for tag in described["tags"]}
    assert tags >= {"auth", "devices", "rules", "alerts", "analytics", "ml", "retention", "users"}
    operations = {o["operationId"] for item in described["paths"].values() for o in item.values()}
    assert {"list_devices", "list_rules"} <= operations


async def test_either_process_of_rules_may_be_killed_and_alerts_go_on(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # More than there are shards, so that every one of these has a device.
        pumps = [await stack.enter_async_context(site.device(f"pump-{n}")) for n in range(8)]
        for pump in pumps:
            await site.watch_bearing(pump)

        async def every_pump_has(count: int, bearing: float) -> bool:
            return all([await site.has_open(p, count=count, bearing=bearing) for p in pumps])

        await until(lambda: every_pump_has(1, HOT), "every pump has an alert", within_s=30)
        await asyncio.to_thread(site.cluster.kill, "rules-2")
        await until(lambda: every_pump_has(0, COOL), "without one, all cleared", within_s=60)
        await asyncio.to_thread(site.cluster.restart, "rules-2")
        await asyncio.to_thread(site.cluster.kill, "rules")
        await until(lambda: every_pump_has(1, HOT), "without the other, all tripped", within_s=60)
        await asyncio.to_thread(site.cluster.restart, "rules")
        assert [len(await site.alerts(pump)) for pump in pumps] == [2] * len(pumps)


def _has_point(frame: dict[str, Any], device: Device, value: float) -> bool:
    return any(p["device_id"] == device.id and p["value"] == value for p in frame["points"])


def _is_online(frame: dict[str, Any], device: Device) -> bool:
    return bool(frame["device_id"] == device.id and frame["data"].get("status") == "online")


async def test_a_past_that_comes_late_changes_the_aggregates_and_pages_nobody(site: Site) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    span = {"from": hour.isoformat(), "to": (hour + timedelta(hours=1)).isoformat()}

    def minutes(of: range, bearing: float) -> list[dict[str, Any]]:
        return [
            {"ts": (hour + timedelta(minutes=n)).isoformat(), "values": {"bearing": bearing}}
            for n in of
        ]

    async with site.device("pump that was away") as device:
        await site.watch_bearing(device)
        where = f"{device.id}/bearing"

        async def is_counted(count: int) -> bool:
            answer = await site.http.get(f"/analytics/statistics/{where}", params=span)
            return bool(answer.status_code == 200 and answer.json()["count"] == count)

        async def means() -> list[float]:
            asked = {**span, "bucket": "PT30M", "aggregate": "mean"}
            told = await site.ask("GET", f"/analytics/timeseries/{where}", params=asked)
            return [point["value"] for point in told["points"]]

        await device.publishes(minutes(range(0, 30, 10), COOL))
        await until(lambda: is_counted(3), "the first half is stored", within_s=30)
        assert (await means())[0] == COOL
        # The rule is in force: it sees what is too hot now, and what is well again.
        await until(lambda: site.has_open(device, count=1, bearing=HOT), "an alert", within_s=30)
        await until(lambda: site.has_open(device, count=0, bearing=COOL), "its end", within_s=30)

        await device.publishes(minutes(range(5, 60, 10), HOT))
        await until(lambda: is_counted(9), "what was missing is stored", within_s=30)
        assert [round(mean, 6) for mean in await means()] == [(COOL + HOT) / 2, HOT]
        # A second alert of now: whatever the past had to say was looked at before.
        await until(lambda: site.has_open(device, count=1, bearing=HOT), "an alert", within_s=30)
        assert len(await site.alerts(device)) == 2
