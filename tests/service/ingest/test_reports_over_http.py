"""What a device says of itself over HTTP: alarms, and its status."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from services.ingest.domain.device import Source
from services.ingest.domain.quota import Quota
from services.ingest.usecases.reports import KEPT, Reports
from tests.service.ingest.conftest import World
from tests.service.ingest.test_hostile_devices import run_with
from tests.service.ingest.test_quotas import RunWith, as_device
from tests.waiting import until

__all__ = ["run_with"]

ME = "/api/v1/devices/me"


async def alarms(world: World) -> list[dict[str, Any]]:
    rows = await world.query(
        "SELECT convert_from(body, 'UTF8') AS body FROM bus.log"
        " WHERE type = 'device.alert_reported.v1' AND tenant_id = $1 ORDER BY position",
        world.tenant_id,
    )
    return [json.loads(row["body"]) for row in rows]


async def test_an_alarm_is_told_to_those_who_look_after_alerts_and_so_is_its_end(
    world: World,
) -> None:
    device_id, token = await world.device()
    for said in (
        {"severity": "high", "message": "oil low", "key": "oil"},
        {"message": "oil again", "key": "oil", "active": False},
    ):
        answer = await world.http.post(f"{ME}/alerts", json=said, headers=as_device(token))
        assert answer.status_code == 204, answer.text

    async def are_told() -> bool:
        return len(await alarms(world)) == 2

    await until(are_told, "both are told")
    first, second = await alarms(world)
    assert first["device_id"] == str(device_id)
    assert (first["severity"], first["message"], first["key"]) == ("high", "oil low", "oil")
    assert (first["active"], second["active"]) == (True, False)


async def test_a_device_s_status_stands_on_its_page_in_its_own_words(world: World) -> None:
    device_id, token = await world.device()
    said = {"status": "offline", "reason": "taken down for cleaning"}
    answer = await world.http.post(f"{ME}/status", json=said, headers=as_device(token))
    assert answer.status_code == 204, answer.text
    page = (await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)).json()
    assert (page["status"], page["status_reason"]) == ("offline", "taken down for cleaning")


@pytest.mark.parametrize(
    ("where", "said", "pointer"),
    [
        ("alerts", {"message": ""}, "#/message"),
        ("alerts", {"message": "x", "severity": "loud"}, "#/severity"),
        ("alerts", {"message": "x", "key": "k" * 201}, "#/key"),
        ("alerts", {"message": "x", "device_id": "another's"}, "#/device_id"),
        ("status", {"status": "asleep"}, "#/status"),
    ],
)
async def test_what_is_none_is_refused_and_says_where(
    world: World, where: str, said: dict[str, object], pointer: str
) -> None:
    _, token = await world.device()
    answer = await world.http.post(f"{ME}/{where}", json=said, headers=as_device(token))
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    # Nobody but the device reports in its name.
    assert (
        await world.http.post(f"{ME}/{where}", json=said, headers=world.headers)
    ).status_code == 401


async def test_a_device_that_reports_too_much_is_told_when_to_come_again(
    run_with: RunWith,
) -> None:
    async with run_with(reports_per_minute=2) as world:
        _, token = await world.device()
        answers = [
            await world.http.post(
                f"{ME}/alerts", json={"message": "oil low"}, headers=as_device(token)
            )
            for _ in range(3)
        ]
        assert [answer.status_code for answer in answers] == [204, 204, 429]
        assert answers[2].json()["detail"] == "a device may make 2 reports a minute"
        assert 25 <= int(answers[2].headers["retry-after"]) <= 30
        assert len(await alarms(world)) == 2


async def test_when_very_many_devices_speak_at_once_they_are_not_all_looked_at_for_each(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4 * KEPT
    looked_at = 0
    full_s = Quota.full_s

    def counted(quota: Quota, now: float) -> float:
        nonlocal looked_at
        looked_at += 1
        assert looked_at <= count
        return full_s(quota, now)

    monkeypatch.setattr(Quota, "full_s", counted)
    reports: Reports = world.app.state.reception.reports
    now = datetime.now(UTC)
    for _ in range(count):
        reports.take_question(Source(uuid4(), world.tenant_id, 1, 0, {}), now)
    assert looked_at > 0
