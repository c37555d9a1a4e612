"""Many at once, and some of them mean harm: what the registry keeps whole then."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.common.http.pages import encode_cursor
from services.ingest.domain.search import Place, SortedBy
from services.ingest.settings import Settings
from services.ingest.usecases import devices
from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until

AT_ONCE = 12


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"devices_per_tenant": 8})


async def ask(world: World, method: str, path: str, body: object = None) -> Any:
    return await world.http.request(method, f"/api/v1/{path}", json=body, headers=world.headers)


async def make(world: World, path: str, **body: object) -> dict[str, Any]:
    answer = await ask(world, "POST", path, body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def said(world: World, kind: str) -> list[dict[str, Any]]:
    """Return what the tenant's events of a kind say, in order."""
    rows = await world.query(
        "SELECT body FROM bus.log WHERE type = $1 AND tenant_id = $2 ORDER BY position",
        kind,
        world.tenant_id,
    )
    return [json.loads(row["body"]) for row in rows]


async def until_waits(world: World, what: str) -> None:
    """Wait until some statement of ingest's waits for a lock."""

    async def waits() -> bool:
        return bool(
            await world.query(
                "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1",
                what,
            )
        )

    await until(waits, f"{what} waits")


async def test_a_key_for_five_lets_five_in_and_a_tenant_has_no_device_too_many(
    world: World,
) -> None:
    made = await make(world, "provisioning-keys", name="k", device_type="m", max_devices=9)

    def provision(serial: str) -> Any:
        body = {"key": made["key"], "serial": serial}
        return world.http.post("/api/v1/devices/provision", json=body)

    # Another replica is at it, and the key is for five from then on.
    async with world.app.state.transactions.begin(world.tenant_id) as store:
        key = await store.provisioning_keys.get(UUID(made["id"]), lock=True)
        first = asyncio.create_task(provision("first"))
        await until_waits(world, "%provisioning_keys%FOR UPDATE%")
        await store.provisioning_keys.update(replace(key, max_devices=5, devices=1))
    answers = [await first, *await asyncio.gather(*(provision(f"{n}") for n in range(AT_ONCE)))]
    assert Counter(answer.status_code for answer in answers) == {201: 4, 409: AT_ONCE - 3}
    # The tenant may have eight.
    answers = await asyncio.gather(
        *(ask(world, "POST", "devices", {"name": f"d{n}", "type": "m"}) for n in range(AT_ONCE))
    )
    assert Counter(answer.status_code for answer in answers) == {201: 4, 409: AT_ONCE - 4}


async def test_a_label_that_many_scan_at_once_is_one_persons(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    device_id, _ = await world.device()
    token = (await make(world, f"devices/{device_id}/claim-token"))["claim_token"]
    strangers = principal_headers(uuid4())
    answers = await asyncio.gather(
        *(
            world.http.post(
                "/api/v1/devices/claim",
                json={"claim_token": token, "name": f"mine {n}"},
                headers=strangers if n % 2 else world.headers,
            )
            for n in range(AT_ONCE)
        )
    )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 404: AT_ONCE - 1}
    # Whoever makes a new label meanwhile, or removes the device, waits and does not collide.
    for _ in range(4):
        token = (await make(world, f"devices/{device_id}/claim-token"))["claim_token"]
        answers = await asyncio.gather(
            ask(world, "POST", "devices/claim", {"claim_token": token}),
            ask(world, "POST", f"devices/{device_id}/claim-token"),
            ask(world, "POST", "devices/claim", {"claim_token": token}),
            ask(world, "POST", f"devices/{device_id}/claim-token"),
        )
        assert {answer.status_code for answer in answers} <= {201, 404}


@pytest.mark.parametrize("kind", ["device-groups", "device-profiles"])
async def test_what_a_device_is_just_being_put_into_is_not_removed_under_it(
    world: World, kind: str
) -> None:
    place = (await make(world, kind, name="place"))["id"]
    field = "group_id" if kind == "device-groups" else "profile_id"
    now = world.app.state.clock.now()
    async with world.app.state.transactions.begin(world.tenant_id) as store:
        await devices.register(
            store,
            uuid4(),
            "t",
            name="d",
            type="m",
            description="",
            most=8,
            at=now,
            **{field: UUID(place)},
        )
        removal = asyncio.create_task(ask(world, "DELETE", f"{kind}/{place}"))
        await until_waits(world, "%FOR UPDATE%")
    assert (await removal).status_code == 409
    (device,) = (await ask(world, "GET", "devices")).json()["items"]
    assert device[field] == place
    # The other way round: it goes first, and nobody is put where nothing is.
    await ask(world, "DELETE", f"devices/{device['id']}")
    async with world.app.state.transactions.begin(world.tenant_id) as store:
        await (store.groups if field == "group_id" else store.profiles).remove(UUID(place))
        await store.session.flush()
        late = asyncio.create_task(
            ask(world, "POST", "devices", {"name": "e", "type": "m", field: place})
        )
        await until_waits(world, "%FOR %SHARE%")
    assert (await late).status_code == 404


async def test_what_many_change_of_a_device_at_once_is_all_there(world: World) -> None:
    device_id, _ = await world.device()
    answers = await asyncio.gather(
        *(
            ask(world, "PATCH", f"devices/{device_id}/attributes/server", {f"n{n}": n})
            for n in range(AT_ONCE)
        ),
        *(ask(world, "POST", f"devices/{device_id}/credentials") for _ in range(3)),
    )
    assert {answer.status_code for answer in answers} == {200, 201}
    kept = (await ask(world, "GET", f"devices/{device_id}/attributes/server")).json()
    assert kept == {f"n{n}": n for n in range(AT_ONCE)}
    # Of those who rotated its token at once one was last, and its token alone is good.
    listed = (await ask(world, "GET", f"devices/{device_id}/credentials")).json()["items"]
    assert len(listed) == 1


async def test_a_flag_that_becomes_a_number_is_a_change_that_is_told(world: World) -> None:
    device_id, _ = await world.device()
    path = f"devices/{device_id}/attributes/shared"
    for value in (True, 1, 1):
        await ask(world, "PATCH", path, {"on": value})
    assert (await ask(world, "GET", path)).json()["on"] is not True
    told = await said(world, "device.attributes_changed.v1")
    assert [(event["scope"], event["names"]) for event in told] == [("shared", ["on"])] * 2


async def test_no_way_leads_to_an_eleventh_credential(world: World) -> None:
    device_id, _ = await world.device()
    path = f"devices/{device_id}/credentials"
    for _ in range(9):
        await make(world, path, overlap=3600)
    assert (await ask(world, "POST", path, {"kind": "psk"})).status_code == 409
    assert (await ask(world, "POST", path, {"overlap": 60})).status_code == 409
    # Without overlap the new one takes the place of those there are.
    await make(world, path)
    await make(world, path, kind="psk")


async def test_a_group_that_moves_is_told_once_with_where_it_was(world: World) -> None:
    north, south = [await make(world, "device-groups", name=name) for name in ("North", "South")]
    hall = await make(world, "device-groups", name="Hall", parent_id=north["id"])
    line = await make(world, "device-groups", name="Line", parent_id=hall["id"])
    await make(world, "devices", name="press", type="press", group_id=line["id"])
    path = f"device-groups/{hall['id']}"
    await ask(world, "PATCH", path, {"name": "Hall 1"})
    await ask(world, "PATCH", path, {"parent_id": south["id"]})
    (told,) = await said(world, "device_group.moved.v1")
    assert (told["was"], told["group_ids"]) == (
        [north["id"], hall["id"]],
        [south["id"], hall["id"]],
    )
    assert (await ask(world, "GET", f"device-groups/{line['id']}")).json()["path"] == [
        south["id"],
        hall["id"],
        line["id"],
    ]
    # Two that go below each other at once: one of them stays.
    answers = await asyncio.gather(
        ask(world, "PATCH", f"device-groups/{north['id']}", {"parent_id": south["id"]}),
        ask(world, "PATCH", f"device-groups/{south['id']}", {"parent_id": north["id"]}),
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409]


async def test_who_sent_a_command_and_who_called_it_off_is_accounted_for(world: World) -> None:
    device_id, _ = await world.device()
    path = f"devices/{device_id}/commands"
    command = await make(world, path, name="stop")
    await ask(world, "POST", f"{path}/{command['id']}/cancel")
    told = [
        (entry["action"], event["actor"]["id"], entry["label"], entry["resource_id"])
        for event in await said(world, "audit.recorded.v1")
        for entry in event["entries"]
        if entry["resource"] == "command"
    ]
    assert told == [
        ("command.created", command["created_by"], "stop", command["id"]),
        ("command.updated", command["created_by"], "stop", command["id"]),
    ]


@pytest.mark.parametrize("sort", list(SortedBy))
async def test_a_cursor_that_somebody_made_himself_is_refused(world: World, sort: SortedBy) -> None:
    for key in ("abc", "2026-99-99", "2026-01-01", "infinity", ""):
        cursor = encode_cursor(Place(sort, False, key, uuid4()))
        answer = await ask(world, "GET", f"devices?sort={sort}&cursor={cursor}")
        # Any text is a place among names.
        assert answer.status_code == (200 if sort is SortedBy.NAME else 400), answer.text
