"""From a broken rule to someone who deals with it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI

from libs.common.clock import SystemClock
from libs.common.events.ingest import DeviceDeleted, DevicesPlaced, DeviceUpdated, Place
from libs.common.events.tenancy import TenantDeleted, UserCreated, UserDeleted
from libs.common.severity import Severity
from services.alerting.domain.trigger import (
    MOST_DEVICE_ALARMS,
    clearing_of_rule,
    trigger_of_rule,
)
from services.alerting.usecases.alerts import clear, raise_alert
from tests.alarms import Plant, rows
from tests.database import DatabaseUrls
from tests.waiting import until


async def test_a_broken_rule_opens_an_alert_that_says_what_is_wrong(plant: Plant) -> None:
    await plant.knows_the_device_as("pump-2")
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    assert alert["title"] == "Bearing temperature"
    assert alert["message"] == "bearing_temperature is 96.4: above 90 for 30 s"
    assert (alert["severity"], alert["value"]) == ("critical", 96.4)
    assert (alert["device_id"], alert["device_name"]) == (str(plant.device_id), "pump-2")
    assert (alert["source_kind"], alert["source_id"]) == ("rule", str(plant.rule_id))


async def test_the_same_event_twice_is_one_alert_counted_once(plant: Plant) -> None:
    event = plant.triggered()
    await plant.hears(event, event)
    replayed = plant.triggered(firing_id=event.firing_id)  # another id: rules sent it anew
    await plant.hears(replayed, plant.alarm())
    await plant.has_alerts("new", "new")  # the alarm was heard after all of them
    [alert] = await plant.alerts(severity="critical")
    assert alert["count"] == 1


async def test_a_rule_that_fires_again_while_its_alert_is_open_is_folded_into_it(
    plant: Plant,
) -> None:
    first = plant.triggered(severity=Severity.MEDIUM)
    await plant.hears(first, plant.triggered(value=99.0))

    async def is_folded() -> bool:
        return [a["count"] for a in await plant.alerts()] == [2]

    await until(is_folded, "one alert, counted twice")
    [alert] = await plant.alerts()
    assert (alert["value"], alert["severity"]) == (99.0, "critical")
    history = await plant.list_of(alert["id"], "history")
    assert [line["what"] for line in history] == ["opened", "severity_raised"]


async def test_a_hundred_triggers_at_once_are_one_alert(plant: Plant, app: FastAPI) -> None:
    async def raise_one() -> None:
        async with app.state.transactions.begin(plant.tenant_id) as store:
            await raise_alert(store, trigger_of_rule(plant.triggered()), alert_id=uuid4())

    await asyncio.gather(*(raise_one() for _ in range(100)))
    [alert] = await plant.alerts()
    assert alert["count"] == 100


async def test_an_alert_of_a_rule_is_over_when_the_rule_holds_again(plant: Plant) -> None:
    fired = plant.triggered()
    await plant.hears(fired)
    [alert] = await plant.has_alerts("new")
    await plant.hears(plant.cleared(fired))
    [alert] = await plant.has_alerts("resolved")
    assert (alert["resolved_how"], alert["resolved_by"]) == ("cleared", None)


async def test_what_someone_has_acknowledged_stays_theirs_and_is_closed_when_it_is_over(
    plant: Plant,
) -> None:
    fired = plant.triggered()
    await plant.hears(fired)
    [alert] = await plant.has_alerts("new")
    await plant.ask("POST", f"/alerts/{alert['id']}/acknowledge")
    await plant.hears(plant.triggered())  # a machine says it once more: still acknowledged

    async def is_folded() -> bool:
        return [(a["state"], a["count"]) for a in await plant.alerts()] == [("acknowledged", 2)]

    await until(is_folded, "still acknowledged")
    await plant.hears(plant.cleared(fired), plant.alarm())
    await plant.has_alerts("new", "acknowledged")  # the second firing goes on
    [_, alert] = await plant.alerts()
    assert alert["acknowledged_by"] == str(plant.ana)


async def test_a_rule_that_fires_after_its_alert_was_resolved_opens_a_new_one(
    plant: Plant,
) -> None:
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    answer = await plant.ask("POST", f"/alerts/{alert['id']}/resolve")
    assert answer.json()["state"] == "resolved"
    await plant.hears(plant.triggered())
    [fresh, old] = await plant.has_alerts("new", "resolved")
    assert fresh["id"] != old["id"]


async def test_a_clearing_that_overtakes_its_trigger_leaves_nothing_open(
    plant: Plant, database_urls: DatabaseUrls
) -> None:
    await plant.mails_to("quiet@plant.example")
    fired = plant.triggered()
    await plant.hears(plant.cleared(fired), fired)
    [alert] = await plant.has_alerts("resolved")
    assert await plant.list_of(alert["id"], "notifications") == []
    history = await plant.list_of(alert["id"], "history")
    assert [line["what"] for line in history] == ["opened", "resolved"]


async def test_a_trigger_and_its_clearing_at_the_same_moment_leave_nothing_open(
    plant: Plant, app: FastAPI
) -> None:
    async def hear(of_rule: int, *, trigger: bool) -> None:
        async with app.state.transactions.begin(plant.tenant_id) as store:
            if trigger:
                await raise_alert(store, trigger_of_rule(fired[of_rule]), alert_id=uuid4())
            else:
                await clear(store, clearing_of_rule(plant.cleared(fired[of_rule])))

    fired = [plant.triggered(rule_id=uuid4()) for _ in range(20)]
    await asyncio.gather(
        *(hear(n, trigger=trigger) for n in range(20) for trigger in (n % 2 == 0, n % 2 != 0))
    )
    assert await plant.alerts(state="open") == []
    assert len(await plant.alerts()) == 20


async def test_an_anomaly_opens_an_alert_that_only_people_close(plant: Plant) -> None:
    await plant.hears(plant.anomaly(), plant.anomaly(score=0.8))

    async def is_folded() -> bool:
        return [a["count"] for a in await plant.alerts()] == [2]

    await until(is_folded, "one alert, counted twice")
    [alert] = await plant.alerts()
    assert (alert["source_kind"], alert["severity"]) == ("anomaly", "critical")
    assert alert["title"] == "Unusual vibration"


async def test_a_device_raises_and_ends_its_own_alarm(plant: Plant) -> None:
    await plant.hears(plant.alarm())
    [alert] = await plant.has_alerts("new")
    assert (alert["source_kind"], alert["title"], alert["severity"]) == (
        "device",
        "oil low",
        "high",
    )
    await plant.hears(plant.alarm(active=False))
    await plant.has_alerts("resolved")
    await plant.hears(plant.alarm())
    await plant.has_alerts("new", "resolved")


async def test_an_alarm_from_before_it_was_over_opens_nothing_again(plant: Plant) -> None:
    now = SystemClock().now()
    await plant.hears(plant.alarm(at=now), plant.alarm(active=False, at=now + timedelta(seconds=2)))
    await plant.has_alerts("resolved")
    await plant.hears(plant.alarm(at=now + timedelta(seconds=1)), plant.anomaly())
    await plant.has_alerts("new", "resolved")
    [alert] = await plant.alerts(state="new")
    assert alert["source_kind"] == "anomaly"


async def test_nothing_stays_open_about_a_device_that_is_no_more(plant: Plant) -> None:
    await plant.knows_the_device_as("pump-2")
    await plant.hears(plant.triggered(), plant.alarm(), plant.anomaly())
    await plant.has_alerts("new", "new", "new")
    now = SystemClock().now()
    await plant.hears(
        DeviceDeleted(tenant_id=plant.tenant_id, at=now, device_id=plant.device_id),
        plant.anomaly(metric="current"),  # scored before, heard after
    )
    alerts = await plant.has_alerts(*["resolved"] * 4)
    assert {a["resolved_how"] for a in alerts} == {"device_deleted"}
    assert {a["device_name"] for a in alerts} == {"pump-2"}


async def test_a_device_is_called_what_it_was_last_called_whatever_comes_late(
    plant: Plant,
) -> None:
    now = SystemClock().now()
    new_name = DeviceUpdated(
        tenant_id=plant.tenant_id,
        at=now + timedelta(minutes=1),
        device_id=plant.device_id,
        name="pump-7",
        device_type="pump",
    )
    await plant.hears(new_name)
    await plant.knows_the_device_as("pump-2")
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    assert alert["device_name"] == "pump-7"


async def test_the_history_says_who_did_what_and_when(plant: Plant) -> None:
    ben = uuid4()
    now = SystemClock().now()
    for user, name in ((plant.ana, "Ana"), (ben, "Ben")):
        await plant.hears(
            UserCreated(
                tenant_id=plant.tenant_id, at=now, user_id=user, email="a@b.example", name=name
            )
        )
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    path = f"/alerts/{alert['id']}"
    answer = await plant.ask("POST", f"{path}/acknowledge", json={"note": "on my way"})
    assert answer.json()["acknowledged_by_name"] == "Ana"
    await plant.ask("POST", f"{path}/investigate", subject=ben)
    answer = await plant.ask("POST", f"{path}/resolve", subject=ben, json={"note": "new grease"})
    assert answer.json()["state"] == "resolved"
    assert (answer.json()["resolved_by"], answer.json()["resolved_how"]) == (str(ben), "by_hand")

    history = await plant.list_of(alert["id"], "history")
    assert [(line["what"], line["state"], line["by_name"], line["detail"]) for line in history] == [
        ("opened", "new", None, "bearing_temperature is 96.4: above 90 for 30 s"),
        ("acknowledged", "acknowledged", "Ana", "on my way"),
        ("investigation_started", "investigating", "Ben", ""),
        ("resolved", "resolved", "Ben", "new grease"),
    ]
    assert [line["at"] for line in history] == sorted(line["at"] for line in history)
    notes = await plant.list_of(alert["id"], "notes")
    assert [(note["by_name"], note["text"]) for note in notes] == [
        ("Ana", "on my way"),
        ("Ben", "new grease"),
    ]

    await plant.hears(UserDeleted(tenant_id=plant.tenant_id, at=SystemClock().now(), user_id=ben))

    async def is_forgotten() -> bool:
        lines = await plant.list_of(alert["id"], "history")
        return [line["by_name"] for line in lines] == [None, "Ana", None, None]

    await until(is_forgotten, "Ben's name is forgotten, his id is not")


async def test_history_can_be_added_to_and_not_changed(
    plant: Plant, database_urls: DatabaseUrls
) -> None:
    await plant.hears(plant.triggered())
    await plant.has_alerts("new")
    granted = await rows(
        database_urls,
        "SELECT table_name, privilege_type FROM information_schema.role_table_grants"
        " WHERE grantee = 'alerting_rw' AND table_name IN ('alert_history', 'alert_notes')",
    )
    assert {tuple(row) for row in granted} == {
        (table, may) for table in ("alert_history", "alert_notes") for may in ("SELECT", "INSERT")
    }


async def test_a_late_acknowledgement_is_told_that_the_alert_is_resolved(plant: Plant) -> None:
    fired = plant.triggered()
    await plant.hears(fired, plant.cleared(fired))
    [alert] = await plant.has_alerts("resolved")
    answer = await plant.ask("POST", f"/alerts/{alert['id']}/acknowledge")
    assert answer.status_code == 409
    assert "resolved" in answer.json()["detail"]


async def test_acknowledging_twice_is_fine_for_the_same_person_and_not_for_another(
    plant: Plant,
) -> None:
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    path = f"/alerts/{alert['id']}/acknowledge"
    first, again = await plant.ask("POST", path), await plant.ask("POST", path)
    assert first.json() == again.json()
    other = await plant.ask("POST", path, subject=uuid4())
    assert other.status_code == 409
    assert "acknowledged" in other.json()["detail"]


async def test_who_acts_on_what_has_changed_meanwhile_is_told_so(plant: Plant) -> None:
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    path = f"/alerts/{alert['id']}"
    seen = {"if-match": f'"{alert["version"]}"'}
    await plant.ask("POST", f"{path}/acknowledge", headers=seen)
    late = await plant.ask("POST", f"{path}/resolve", headers=seen)
    assert late.status_code == 412
    assert (await plant.ask("POST", f"{path}/resolve")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "permission"),
    [
        ("GET", "", "alerts:read"),
        ("POST", "/acknowledge", "alerts:acknowledge"),
        ("POST", "/investigate", "alerts:acknowledge"),
        ("POST", "/resolve", "alerts:resolve"),
        ("GET", "/notes", "alerts:read"),
        ("POST", "/notes", "alerts:acknowledge"),
        ("GET", "/history", "alerts:read"),
        ("GET", "/notifications", "alerts:read"),
    ],
)
async def test_somebody_elses_alert_looks_like_one_that_never_was(
    a_plant: Callable[[], Plant], method: str, path: str, permission: str
) -> None:
    here, there = a_plant(), a_plant()
    await there.hears(there.triggered())
    [alert] = await there.has_alerts("new")
    body = {"text": "mine?"} if (method, path) == ("POST", "/notes") else None

    def without_ids(answer: object, alert_id: str) -> str:
        return str(answer).replace(alert_id, "ID")

    nobodys = str(uuid4())
    foreign = await here.ask(method, f"/alerts/{alert['id']}{path}", permission, json=body)
    unknown = await here.ask(method, f"/alerts/{nobodys}{path}", permission, json=body)
    assert foreign.status_code == unknown.status_code == 404
    problems = [foreign.json() | {"request_id": ""}, unknown.json() | {"request_id": ""}]
    assert without_ids(problems[0], alert["id"]) == without_ids(problems[1], nobodys)
    forbidden = await there.ask(method, f"/alerts/{alert['id']}{path}", "devices:read", json=body)
    assert forbidden.status_code == 403
    [untouched] = await there.alerts()
    assert untouched["state"] == "new"


async def test_two_tenants_with_the_same_trouble_have_an_alert_each(
    a_plant: Callable[[], Plant],
) -> None:
    here, there = a_plant(), a_plant()
    there.device_id, there.rule_id = here.device_id, here.rule_id
    await here.hears(here.triggered())
    await there.hears(there.triggered(value=120.0))
    [mine] = await here.has_alerts("new")
    [theirs] = await there.has_alerts("new")
    assert mine["id"] != theirs["id"]
    assert (mine["value"], theirs["value"]) == (96.4, 120.0)
    await here.ask("POST", f"/alerts/{mine['id']}/resolve")
    await there.has_alerts("new")


async def test_alerts_are_listed_newest_first_by_state_severity_and_device(plant: Plant) -> None:
    now = SystemClock().now()
    events = [
        plant.triggered(
            rule_id=uuid4(),
            at=now + timedelta(seconds=n),
            severity=[Severity.HIGH, Severity.LOW][n % 2],
            device_id=plant.device_id if n < 3 else uuid4(),
        )
        for n in range(6)
    ]
    await plant.hears(*events)
    alerts = await plant.has_alerts(*["new"] * 6)
    assert [a["source_id"] for a in alerts] == [str(e.rule_id) for e in reversed(events)]
    await plant.ask("POST", f"/alerts/{alerts[0]['id']}/acknowledge")
    await plant.ask("POST", f"/alerts/{alerts[1]['id']}/resolve")

    assert len(await plant.alerts(severity="high")) == 3
    assert len(await plant.alerts(severity=["high", "low"])) == 6
    assert len(await plant.alerts(device_id=str(plant.device_id))) == 3
    assert [a["id"] for a in await plant.alerts(state="acknowledged")] == [alerts[0]["id"]]
    assert [a["id"] for a in await plant.alerts(state="resolved")] == [alerts[1]["id"]]
    assert len(await plant.alerts(state="open")) == 5
    refused = await plant.ask("GET", "/alerts", params={"state": "sleepy"})
    assert refused.status_code == 422

    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await plant.ask(
            "GET", "/alerts", params={"limit": 4} | ({"cursor": cursor} if cursor else {})
        )
        seen += [a["id"] for a in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert seen == [a["id"] for a in alerts]


async def test_a_long_history_of_notes_is_read_page_by_page(plant: Plant) -> None:
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    path = f"/alerts/{alert['id']}/notes"
    for n in range(3):
        written = await plant.ask("POST", path, json={"text": f"note {n}"})
        assert written.status_code == 201
    first = (await plant.ask("GET", path, params={"limit": 2})).json()
    rest = (await plant.ask("GET", path, params={"cursor": first["next_cursor"]})).json()
    assert [n["text"] for n in first["items"] + rest["items"]] == ["note 0", "note 1", "note 2"]
    empty = await plant.ask("POST", path, json={"text": ""})
    assert empty.status_code == 422


async def test_nothing_is_kept_of_a_tenant_that_is_no_more(
    a_plant: Callable[[], Plant], database_urls: DatabaseUrls
) -> None:
    gone, there = a_plant(), a_plant()
    for plant in (gone, there):
        await plant.knows_the_device_as("pump-2")
        await plant.mails_to("shift@plant.example")
        await plant.hears(plant.triggered())
        [alert] = await plant.has_alerts("new")
        await plant.ask("POST", f"/alerts/{alert['id']}/acknowledge", json={"note": "mine"})
        place = Place(groups=[uuid4()], device_ids=[uuid4()])
        now = SystemClock().now()
        await plant.hears(
            DevicesPlaced(tenant_id=plant.tenant_id, at=now, number=1, places=[place])
        )
    await gone.hears(TenantDeleted(tenant_id=gone.tenant_id, at=now, slug="gone"))
    tables = [
        row["table_name"]
        for row in await rows(
            database_urls,
            "SELECT table_name FROM information_schema.columns"
            " WHERE table_schema = 'alerting' AND column_name = 'tenant_id'"
            # No request here brings a key; tests/contract/isolation/test_erasure.py has some.
            # What changes is noted there only until the commit.
            " AND table_name NOT IN ('outbox', 'idempotency_keys', 'changes')",
        )
    ]
    assert len(tables) == 8

    async def kept(plant: Plant) -> dict[str, int]:
        found = {}
        for table in tables:
            [row] = await rows(
                database_urls,
                f"SELECT count(*) AS n FROM alerting.{table} WHERE tenant_id = $1",
                plant.tenant_id,
            )
            found[table] = row["n"]
        return found

    async def is_erased() -> bool:
        return not any((await kept(gone)).values())

    await until(is_erased, "all is erased")
    assert all((await kept(there)).values())


async def test_a_device_that_floods_has_so_many_alerts_and_one_for_all_that_come_beyond(
    plant: Plant,
) -> None:
    channel = await plant.mails_to("night@plant.example")
    await plant.hears(*(plant.alarm(key=f"k{n}") for n in range(MOST_DEVICE_ALARMS + 30)))

    async def beyond(count: int) -> dict[str, Any]:
        async def holds() -> bool:
            return [alert["count"] for alert in await found()] == [count]

        async def found() -> list[dict[str, Any]]:
            return [
                a for a in await plant.alerts(state="open") if a["title"].startswith("Too many")
            ]

        await until(holds, f"{count} alarms in one alert")
        return (await found())[0]

    one = await beyond(30)
    assert one["message"] == f"more than {MOST_DEVICE_ALARMS} are open; the latest: oil low"
    assert len(await plant.alerts(limit=100)) == MOST_DEVICE_ALARMS + 1
    await plant.notification_is(one["id"], channel, "opened", "delivered")

    # The end of one makes room for the next, and only for that; what is open is counted as before.
    await plant.hears(
        plant.alarm(key="k1", active=False), plant.alarm(key="k98"), plant.alarm(key="k99")
    )
    await plant.hears(plant.alarm(key="k2"), plant.triggered())
    await beyond(31)
    await until(lambda: _has_heard(plant), "the rule's own alert, which no flood keeps away")
    counts = [alert["count"] for alert in await plant.alerts(state="open", limit=100)]
    assert sorted(counts) == [*[1] * MOST_DEVICE_ALARMS, 2, 31]


async def _has_heard(plant: Plant) -> bool:
    return bool(await plant.alerts(severity="critical"))
