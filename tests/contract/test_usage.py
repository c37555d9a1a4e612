"""What a tenant uses is counted to the call and to the point, and its plan holds at every door."""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.contract.isolation.test_walk import (
    ADMIN,
    Platform,
    Tenant,
    platform,  # noqa: F401 - a fixture
    urls,  # noqa: F401 - a fixture of that one
)
from tests.waiting import until


async def usage(root: Tenant, tenant: Tenant) -> dict[str, Any]:
    """Return what the platform's admin sees of a tenant's usage: that counts for nobody but them."""
    answer: dict[str, Any] = await root.call("GET", f"/api/v1/tenants/{tenant.id}/usage")
    return answer


async def today(root: Tenant, tenant: Tenant) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for day in (await usage(root, tenant))["days"]:
        # A test that runs at midnight has two days.
        for resource, amount in day["amounts"].items():
            amounts[resource] = amounts.get(resource, 0) + amount
    return amounts


@pytest.mark.timeout(120)
async def test_usage_is_what_a_recount_finds(platform: Platform) -> None:  # noqa: F811 - the fixture's value
    root = Tenant(platform, uuid4(), ADMIN, "root")
    plant = await platform.open_tenant(root, f"usage-{secrets.token_hex(4)}")
    headers = await plant.credential()
    calls = 0

    async def ask(method: str, path: str, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        return await platform.http.request(method, f"/api/v1{path}", headers=headers, **more)

    devices = [
        (await ask("POST", "/devices", json={"name": f"d{n}", "type": "press"})).json()["id"]
        for n in range(3)
    ]
    noon = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    readings = [
        {
            "device_id": device,
            "ts": (noon + timedelta(milliseconds=n)).isoformat(),
            "values": {"temp": 20.0 + n, "mode": "auto"},
        }
        for device in devices
        for n in range(40)
    ]
    # In parts, all at once, each of them twice, and once more when they are stored.
    parts = [readings[start : start + 17] for start in range(0, len(readings), 17)]
    await asyncio.gather(*[ask("POST", "/telemetry", json=part) for part in parts * 2])

    async def stored() -> int:
        number = "(SELECT number FROM historian.tenant WHERE id = $1)"
        found: int = await platform.admin.fetchval(
            f"SELECT (SELECT count(*) FROM historian.points WHERE tenant = {number})"
            f" + (SELECT count(*) FROM historian.texts WHERE tenant = {number})",
            plant.id,
        )
        return found

    async def are_stored() -> bool:
        return await stored() == 240

    await until(are_stored, "all points are stored")
    await asyncio.gather(*[ask("POST", "/telemetry", json=part) for part in parts])
    # What is refused by a service was asked all the same; what has no credential is nobody's.
    assert (await ask("GET", f"/devices/{uuid4()}")).status_code == 404
    await platform.http.get("/api/v1/devices")

    async def is_counted() -> bool:
        await ask("GET", "/telemetry/ledger")  # which brings it up to date
        amounts = await today(root, plant)
        return amounts.get("points_per_day") == 240

    await until(is_counted, "the points are counted")

    async def are_counted() -> bool:
        return (await today(root, plant)).get("api_calls_per_day") == calls

    await until(are_counted, f"{calls} calls are counted")
    amounts = await today(root, plant)
    assert amounts["points_per_day"] == await stored()
    assert (amounts["devices"], amounts["users"]) == (3, 1)


@pytest.mark.timeout(120)
async def test_a_tenants_calls_of_the_day_are_held_to_its_plan_and_its_people_are_alarmed(
    platform: Platform,  # noqa: F811 - the fixture's value
) -> None:
    root = Tenant(platform, uuid4(), ADMIN, "root")
    plant = await platform.open_tenant(root, f"calls-{secrets.token_hex(4)}")
    quotas = f"/api/v1/tenants/{plant.id}/quotas"
    await root.call("PUT", quotas, quotas={"api_calls_per_day": {"most": 20}})

    async def ask(path: str = "/devices") -> Any:
        return await platform.http.get(f"/api/v1{path}", headers=await plant.credential())

    await plant.credential()
    answers = await asyncio.gather(*[ask() for _ in range(30)])
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 10
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["type"] == "urn:iiot:problem:quota-spent"
    assert "allows 20 API calls a day" in refused.json()["detail"]
    assert 0 < int(refused.headers["retry-after"]) <= 86400

    async def is_alarmed() -> bool:
        return bool(
            await platform.admin.fetchval(
                "SELECT count(*) FROM alerting.alerts WHERE tenant_id = $1 AND state = 'new'"
                " AND dedup_key = 'quota:api_calls_per_day' AND severity = 'high'",
                plant.id,
            )
        )

    await until(is_alarmed, "the tenant's people are told")
    assert (await today(root, plant))["api_calls_per_day"] == 20

    await root.call("PUT", quotas, quotas={})

    async def goes_on() -> bool:
        return bool((await ask("/alerts")).is_success)

    await until(goes_on, "a larger plan lets it go on")

    async def is_over() -> bool:
        [alert] = (await ask("/alerts")).json()["items"]
        told: list[str] = [alert["state"], alert["source_kind"]]
        return told == ["resolved", "quota"]

    await until(is_over, "the alert is closed")
