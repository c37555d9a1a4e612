"""Commands to devices: queued, sent down, answered, or ended when their time is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.bus.subscriptions import listen
from libs.common.clock import SystemClock
from libs.common.errors import Invalid, Unavailable
from libs.common.events.base import Event, to_message
from libs.common.events.ingest import CommandCompleted
from libs.common.events.rules import CommandRequested
from services.ingest.app import build
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.device import Source
from services.ingest.settings import Settings
from services.ingest.store.commands import MOST_RESENDS, MOST_STEPS_SENT, Dispatches
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.waiting import until


class Link:
    """A device's connection, as far as commands go."""

    def __init__(self, world: World, source: Source, delivered: Delivered) -> None:
        self._downlinks = world.app.state.reception.downlinks
        self._source = source
        self.delivered = delivered
        self.got: list[Outgoing] = []
        self.error: BaseException | None = None
        self.at_once = 0

    async def send(self, command: Outgoing) -> Delivered:
        """Take a command as the device would."""
        self.at_once += 1
        assert self.at_once == 1, "one command at a time"
        try:
            if self.error is not None:
                raise self.error
            self.got.append(command)
            return self.delivered
        finally:
            self.at_once -= 1

    def open(self) -> "Link":
        self._downlinks.attach(self._source, self.send)
        return self

    def close(self) -> None:
        self._downlinks.detach(self._source, self.send)

    @property
    def names(self) -> list[str]:
        return [command.name for command in self.got]


async def link(
    world: World, device_id: UUID, delivered: Delivered = Delivered.ACKNOWLEDGED
) -> Link:
    """Return a way to a device, not open yet."""
    source = await world.app.state.sources.of_tenant(world.tenant_id, device_id)
    return Link(world, source, delivered)


async def command(world: World, device_id: UUID, name: str = "start", **said: Any) -> UUID:
    """Send a command; return its id."""
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": name, **said},
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "queued"
    return UUID(answer.json()["id"])


async def shown(world: World, device_id: UUID, command_id: UUID, wait: int = 0) -> dict[str, Any]:
    """Return a command as its sender sees it."""
    answer = await world.http.get(
        f"/api/v1/devices/{device_id}/commands/{command_id}",
        params={"wait": wait},
        headers=world.headers,
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def until_status(
    world: World, device_id: UUID, command_id: UUID, status: str
) -> dict[str, Any]:
    """Wait until a command has come so far; return it."""

    async def there() -> bool:
        return bool((await shown(world, device_id, command_id))["status"] == status)

    await until(there, f"the command is {status}")
    return await shown(world, device_id, command_id)


def fetch(world: World, token: str, wait: int = 1, limit: int = 16) -> Any:
    """Ask for commands as a device."""
    return world.http.get(
        "/api/v1/devices/me/commands",
        params={"wait": wait, "limit": limit},
        headers={"authorization": f"Bearer {token}"},
    )


def reply(world: World, token: str, command_id: object, **said: Any) -> Any:
    """Answer a command as a device."""
    return world.http.post(
        f"/api/v1/devices/me/commands/{command_id}/reply",
        json=said,
        headers={"authorization": f"Bearer {token}"},
    )


async def say(bus: LocalBus, *events: Event) -> None:
    """Let another service say something."""
    await bus.publish([to_message(event) for event in events])


@asynccontextmanager
async def replica(world: World, settings: Settings, keys: KeySource) -> AsyncIterator[World]:
    """Run a second process of ingest beside the first."""
    bus = LocalBus(world.urls.bus, SystemClock())
    app = build(settings, bus, SystemClock(), keys=keys)
    async with running(app, bus, world.urls, world.tenant_id, world.headers) as second:
        yield second


async def test_a_command_waits_for_its_device_and_is_done_when_it_has_answered(
    world: World,
) -> None:
    device_id, token = await world.device()
    wanted = await command(world, device_id, "set_speed", params={"rpm": 900})
    assert (await shown(world, device_id, wanted))["status"] == "queued"

    answer = await fetch(world, token)
    assert answer.status_code == 200, answer.text
    (given,) = answer.json()["items"]
    assert (given["id"], given["name"], given["params"]) == (str(wanted), "set_speed", {"rpm": 900})
    assert (await shown(world, device_id, wanted))["status"] == "sent"

    assert (await reply(world, token, wanted, status="acknowledged")).status_code == 204
    assert (await shown(world, device_id, wanted))["status"] == "acknowledged"
    done = await reply(world, token, wanted, status="succeeded", result={"rpm": 899.5})
    assert done.status_code == 204
    over = await shown(world, device_id, wanted)
    assert (over["status"], over["result"], over["error"]) == ("succeeded", {"rpm": 899.5}, None)
    assert over["completed_at"] >= over["acknowledged_at"] >= over["sent_at"] >= over["created_at"]
    assert [step["status"] for step in over["steps"]] == [
        "queued",
        "sent",
        "acknowledged",
        "succeeded",
    ]


async def test_a_device_that_is_there_gets_its_commands_at_once_and_in_order(world: World) -> None:
    device_id, _ = await world.device()
    way = (await link(world, device_id)).open()
    sent = [await command(world, device_id, f"step-{n}") for n in range(30)]
    await until(lambda: len(way.got) >= 30, "all commands are there")
    assert way.names == [f"step-{n}" for n in range(30)]
    for one in sent:
        await until_status(world, device_id, one, "acknowledged")


async def test_what_waited_leaves_in_order_when_the_device_comes(world: World) -> None:
    device_id, _ = await world.device()
    for n in range(40):
        await command(world, device_id, f"step-{n}")
    way = (await link(world, device_id)).open()
    await until(lambda: len(way.got) >= 40, "all commands are there")
    assert way.names == [f"step-{n}" for n in range(40)]


async def test_a_command_without_an_answer_is_done_when_it_has_left(world: World) -> None:
    device_id, _ = await world.device()
    (await link(world, device_id, Delivered.SENT)).open()
    wanted = await command(world, device_id, two_way=False)
    over = await shown(world, device_id, wanted, wait=10)
    assert (over["status"], over["acknowledged_at"]) == ("succeeded", None)
    await until_status(world, device_id, wanted, "succeeded")


async def test_when_the_way_is_gone_the_command_waits_for_the_next(world: World) -> None:
    device_id, _ = await world.device()
    way = (await link(world, device_id)).open()
    way.error = Unavailable("the connection is over")
    first = await command(world, device_id, "first")
    second = await command(world, device_id, "second")

    async def tried() -> bool:
        steps = (await shown(world, device_id, first))["steps"]
        return [step["status"] for step in steps][:3] == ["queued", "sent", "queued"]

    await until(tried, "the first was tried, and waits again")
    way.close()
    again = (await link(world, device_id)).open()
    await until(lambda: len(again.got) == 2, "both have left")
    assert again.names == ["first", "second"]
    for one in (first, second):
        await until_status(world, device_id, one, "acknowledged")


async def test_however_often_the_way_was_gone_only_what_was_sent_is_counted_and_none_is_left_out(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> None:
    settings = settings.model_copy(update={"commands_resend_after": timedelta(seconds=1)})
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    async with running(app, bus, database_urls, tenant_id, principal_headers(tenant_id)) as world:
        device_id, token = await world.device()
        wanted = await command(world, device_id)

        async def claims() -> int:
            query = "SELECT claims FROM ingest.commands WHERE id = $1"
            (row,) = await world.query(query, wanted)
            return int(row["claims"])

        async def steps() -> list[tuple[str, str]]:
            written = (await shown(world, device_id, wanted))["steps"]
            return [(step["status"], step["detail"]) for step in written]

        while (before := await claims()) <= MOST_STEPS_SENT:
            way = await link(world, device_id)
            way.error = Unavailable("the connection is over")
            way.open()

            async def tried(before: int = before) -> bool:
                return await claims() > before

            await until(tried, "it was tried")
            way.close()
        waits = await until_status(world, device_id, wanted, "queued")
        assert (waits["attempts"], waits["sent_at"]) == (0, None)
        assert len(waits["steps"]) == 1 + 2 * MOST_STEPS_SENT
        assert (await reply(world, token, wanted, status="succeeded")).status_code == 404

        # Sent, and lost: all that a command may be sent again is left to it, and is to be seen.
        way = (await link(world, device_id, Delivered.SENT)).open()

        async def sent_twice() -> bool:
            return (await steps())[-2:] == [("sent", ""), ("sent", "attempt 2")]

        await until(sent_twice, "it is sent, and sent again")
        way.close()
        assert (await shown(world, device_id, wanted))["attempts"] == len(way.got)
        assert (await reply(world, token, wanted, status="succeeded")).status_code == 204
        assert (await steps())[-1] == ("succeeded", "")


async def test_a_device_that_cannot_be_given_a_command_fails_it_and_gets_the_next(
    world: World,
) -> None:
    device_id, _ = await world.device()
    way = (await link(world, device_id)).open()
    way.error = Invalid("there is no such node")
    wanted = await command(world, device_id)
    over = await until_status(world, device_id, wanted, "failed")
    assert over["error"] == "there is no such node"
    way.error = None
    await until_status(world, device_id, await command(world, device_id), "acknowledged")


async def test_who_asks_for_the_outcome_waits_for_it(world: World) -> None:
    device_id, token = await world.device()
    wanted = await command(world, device_id)
    asked = asyncio.create_task(shown(world, device_id, wanted, wait=30))
    await until(lambda: bool(world.app.state.outcomes._waiting), "somebody waits")
    await fetch(world, token)
    await reply(world, token, wanted, status="failed", error="the door is open")
    over = await asyncio.wait_for(asked, 10)
    assert (over["status"], over["error"]) == ("failed", "the door is open")


async def test_what_is_not_sent_in_time_expires(world: World) -> None:
    device_id, token = await world.device()
    soon = datetime.now(UTC) + timedelta(seconds=1)
    wanted = await command(world, device_id, expires_at=soon.isoformat())
    over = await shown(world, device_id, wanted, wait=15)
    assert over["status"] == "expired"
    assert (await fetch(world, token)).json()["items"] == []


async def test_what_is_not_answered_in_time_fails_and_a_late_answer_is_kept_beside_it(
    world: World,
) -> None:
    device_id, token = await world.device()
    wanted = await command(world, device_id, timeout="PT1S")
    await fetch(world, token)
    over = await shown(world, device_id, wanted, wait=15)
    assert (over["status"], over["error"]) == ("failed", "timeout")
    for _ in range(2):
        late = await reply(world, token, wanted, status="succeeded", result=7)
        assert late.status_code == 204
    over = await shown(world, device_id, wanted)
    assert (over["status"], over["error"], over["result"]) == ("failed", "timeout", 7)
    assert [step["detail"] for step in over["steps"]][-2:] == ["timeout", "late answer: succeeded"]


async def test_an_answer_said_again_changes_nothing_and_the_end_is_told_once(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> None:
    told: list[CommandCompleted] = []

    async def hear(event: CommandCompleted) -> None:
        told.append(event)

    listen(bus, "test.completed", {CommandCompleted: hear})
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    headers = principal_headers(tenant_id)
    async with running(app, bus, database_urls, tenant_id, headers) as world:
        device_id, token = await world.device()
        wanted, last = [await command(world, device_id) for _ in range(2)]
        await fetch(world, token)
        for status in ("acknowledged", "acknowledged", "succeeded", "succeeded", "acknowledged"):
            assert (await reply(world, token, wanted, status=status)).status_code == 204
        over = await shown(world, device_id, wanted)
        assert [step["status"] for step in over["steps"]] == [
            "queued",
            "sent",
            "acknowledged",
            "succeeded",
        ]
        await reply(world, token, last, status="failed", error="no")
        await until(lambda: len(told) >= 2, "both ends are told")
    assert [(event.command_id, event.status, event.error) for event in told] == [
        (wanted, "succeeded", None),
        (last, "failed", "no"),
    ]


async def test_nobody_answers_for_another_device_nor_for_what_was_never_sent(world: World) -> None:
    device_id, token = await world.device()
    _, other = await world.device()
    wanted = await command(world, device_id)
    foreign = await reply(world, other, wanted, status="succeeded")
    unknown = await reply(world, other, uuid4(), status="succeeded")
    early = await reply(world, token, wanted, status="succeeded")
    assert [foreign.status_code, unknown.status_code, early.status_code] == [404, 404, 404]
    assert foreign.json()["type"] == unknown.json()["type"]
    assert (await shown(world, device_id, wanted))["status"] == "queued"


async def test_a_command_that_waits_can_be_called_off_and_one_that_left_cannot(
    world: World,
) -> None:
    device_id, token = await world.device()
    first = await command(world, device_id)
    path = f"/api/v1/devices/{device_id}/commands/{first}/cancel"
    cancelled = await world.http.post(path, headers=world.headers)
    assert (cancelled.status_code, cancelled.json()["error"]) == (200, "cancelled")
    assert (await world.http.post(path, headers=world.headers)).status_code == 409
    second = await command(world, device_id)
    (given,) = (await fetch(world, token)).json()["items"]
    assert given["id"] == str(second)
    path = f"/api/v1/devices/{device_id}/commands/{second}/cancel"
    assert (await world.http.post(path, headers=world.headers)).status_code == 409


async def test_a_device_that_is_removed_leaves_no_open_command(world: World) -> None:
    device_id, _ = await world.device()
    wanted = await command(world, device_id)
    gone = await world.http.delete(f"/api/v1/devices/{device_id}", headers=world.headers)
    assert gone.status_code == 204

    async def ended() -> bool:
        rows = await world.query("SELECT status, error FROM ingest.commands WHERE id = $1", wanted)
        return [tuple(row) for row in rows] == [("failed", "device_removed")]

    await until(ended, "the command has failed")
    path = f"/api/v1/devices/{device_id}/commands"
    assert (await world.http.get(path, headers=world.headers)).status_code == 404


async def test_a_device_has_a_hundred_open_commands_at_most(world: World) -> None:
    device_id, _ = await world.device()
    path = f"/api/v1/devices/{device_id}/commands"
    answers = await asyncio.gather(
        *(world.http.post(path, json={"name": f"{n}"}, headers=world.headers) for n in range(104))
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 100 + [409] * 4
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["type"].endswith("too_many_commands")


@pytest.mark.parametrize(
    "said",
    [
        {"name": ""},
        {"name": "x" * 129},
        {"name": "a\nb"},
        {"name": "x", "params": []},
        {"name": "x", "params": {"text": "y" * 20_000}},
        {"name": "x", "timeout": 0.1},
        {"name": "x", "timeout": "P3D"},
        {"name": "x", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "x", "expires_at": "2999-01-01T00:00:00Z"},
        {"name": "x", "expires_at": "2999-01-01T00:00:00"},
        {"name": "x", "urgent": True},
    ],
)
async def test_a_command_that_makes_no_sense_is_refused(world: World, said: dict[str, Any]) -> None:
    device_id, _ = await world.device()
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands", json=said, headers=world.headers
    )
    assert answer.status_code == 422, answer.text


async def test_the_same_key_sends_once(world: World) -> None:
    device_id, _ = await world.device()
    headers = {**world.headers, "idempotency-key": str(uuid4())}
    path = f"/api/v1/devices/{device_id}/commands"
    first, second = [
        await world.http.post(path, json={"name": "open"}, headers=headers) for _ in range(2)
    ]
    assert first.json()["id"] == second.json()["id"]
    listed = (await world.http.get(path, headers=world.headers)).json()["items"]
    assert len(listed) == 1


async def test_who_may_only_look_cannot_send(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    device_id, _ = await world.device()
    wanted = await command(world, device_id)
    viewer = principal_headers(world.tenant_id, "commands:read")
    path = f"/api/v1/devices/{device_id}/commands"
    assert (await world.http.post(path, json={"name": "x"}, headers=viewer)).status_code == 403
    cancel = f"{path}/{wanted}/cancel"
    assert (await world.http.post(cancel, headers=viewer)).status_code == 403
    assert (await world.http.get(path, headers=viewer)).status_code == 200
    stranger = principal_headers(uuid4())
    for known in (path, f"{path}/{wanted}"):
        assert (await world.http.get(known, headers=stranger)).status_code == 404


async def test_the_list_has_pages_and_knows_the_states(world: World) -> None:
    device_id, token = await world.device()
    sent = [await command(world, device_id, f"c{n}") for n in range(5)]
    await fetch(world, token, limit=2)
    path = f"/api/v1/devices/{device_id}/commands"
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query: dict[str, Any] = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = (await world.http.get(path, params=query, headers=world.headers)).json()
        seen += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["c4", "c3", "c2", "c1", "c0"]

    waiting = await world.http.get(path, params={"status": "queued"}, headers=world.headers)
    assert {item["id"] for item in waiting.json()["items"]} == {str(one) for one in sent[2:]}
    assert {item["attempts"] for item in waiting.json()["items"]} == {0}


async def test_a_rule_asks_for_a_command_once_however_often_it_is_said(
    world: World, bus: LocalBus
) -> None:
    device_id, token = await world.device()
    rule_id = uuid4()
    for _ in range(3):
        await say(
            bus,
            CommandRequested(
                tenant_id=world.tenant_id,
                at=datetime.now(UTC),
                rule_id=rule_id,
                device_id=device_id,
                key="firing-1",
                name="stop",
                params={"soft": True},
            ),
        )
    (given,) = (await fetch(world, token, wait=10)).json()["items"]
    assert (given["name"], given["params"]) == ("stop", {"soft": True})
    assert (await shown(world, device_id, given["id"]))["created_by"] == f"rule:{rule_id}"
    assert (await fetch(world, token)).json()["items"] == []


async def test_what_a_rule_asks_of_a_device_that_has_too_much_is_there_as_failed(
    world: World, bus: LocalBus
) -> None:
    device_id, _ = await world.device()
    for n in range(100):
        await command(world, device_id, f"{n}")
    rule_id = uuid4()
    await say(
        bus,
        CommandRequested(
            tenant_id=world.tenant_id,
            at=datetime.now(UTC),
            rule_id=rule_id,
            device_id=device_id,
            key="k",
            name="stop",
        ),
    )
    path = f"/api/v1/devices/{device_id}/commands"

    async def failed() -> bool:
        page = await world.http.get(path, params={"status": "failed"}, headers=world.headers)
        return [item["error"] for item in page.json()["items"]] == ["too_many_commands"]

    await until(failed, "the rule's command has failed")


async def test_a_second_request_of_a_device_ends_the_first_and_gets_the_command(
    world: World,
) -> None:
    device_id, token = await world.device()
    first = asyncio.create_task(fetch(world, token, wait=30))
    polls = world.app.state.polls
    await until(lambda: device_id in polls._polls, "the first waits")
    second = asyncio.create_task(fetch(world, token, wait=30))
    assert (await asyncio.wait_for(first, 5)).json()["items"] == []
    await command(world, device_id)
    answer = await asyncio.wait_for(second, 5)
    assert [item["name"] for item in answer.json()["items"]] == ["start"]
    assert polls._polls == {}
    assert world.app.state.dispatcher._ways == {}


async def test_a_device_that_is_cut_off_fetches_nothing_any_more(world: World) -> None:
    device_id, token = await world.device()
    waits = asyncio.create_task(fetch(world, token, wait=30))
    await until(lambda: device_id in world.app.state.polls._polls, "it waits")
    await world.http.delete(f"/api/v1/devices/{device_id}", headers=world.headers)
    assert (await asyncio.wait_for(waits, 5)).json()["items"] == []
    assert (await fetch(world, token)).status_code == 401
    assert (await reply(world, token, uuid4(), status="succeeded")).status_code == 401
    assert (await fetch(world, "nobody's")).status_code == 401
    user = await world.http.get("/api/v1/devices/me/commands", headers=world.headers)
    assert user.status_code == 401


async def test_a_command_is_sent_by_the_process_that_has_the_device(
    world: World, settings: Settings, keys: KeySource
) -> None:
    device_id, _ = await world.device()
    async with replica(world, settings, keys) as second:
        way = (await link(second, device_id)).open()
        wanted = await command(world, device_id)
        await until(lambda: len(way.got) == 1, "it has left by the other process")
        assert way.got[0].id == wanted
        await until_status(world, device_id, wanted, "acknowledged")


async def test_of_two_ways_in_two_processes_one_sends(
    world: World, settings: Settings, keys: KeySource
) -> None:
    device_id, _ = await world.device()
    async with replica(world, settings, keys) as second:
        ways = [(await link(where, device_id)).open() for where in (world, second)]
        sent = [await command(world, device_id, f"c{n}") for n in range(20)]
        for one in sent:
            await until_status(world, device_id, one, "acknowledged")
        got = [given.id for way in ways for given in way.got]
        assert sorted(got) == sorted(sent)


async def test_what_was_sent_by_a_process_that_died_is_sent_again_with_the_same_id(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> None:
    settings = settings.model_copy(update={"commands_resend_after": timedelta(seconds=1)})
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    headers = principal_headers(tenant_id)
    async with running(app, bus, database_urls, tenant_id, headers) as world:
        device_id, _ = await world.device()
        wanted = await command(world, device_id)
        # As a process leaves it that was killed between the claim and the device.
        await world.query(
            "UPDATE ingest.commands SET status = 'sent', attempts = 1, sent_at = now(),"
            " tried_at = now(), due_at = now() + timeout WHERE id = $1",
            wanted,
        )
        way = (await link(world, device_id)).open()
        over = await until_status(world, device_id, wanted, "acknowledged")
        assert [given.id for given in way.got] == [wanted]
        assert over["attempts"] == 2

        # So is what a connection took with it when it ended in the middle.
        way.error = asyncio.CancelledError()
        wanted = await command(world, device_id)
        await until_status(world, device_id, wanted, "sent")
        way.error = None
        over = await until_status(world, device_id, wanted, "acknowledged")
        assert [given.id for given in way.got][1:] == [wanted]


async def test_a_request_takes_only_what_it_has_room_for(world: World) -> None:
    device_id, token = await world.device()
    sent = [await command(world, device_id, f"step-{n}") for n in range(4)]
    (given,) = (await fetch(world, token, limit=1)).json()["items"]
    assert given["name"] == "step-0"
    rows = await world.query(
        "SELECT claims FROM ingest.commands WHERE id = ANY($1) ORDER BY seq", sent
    )
    assert [row["claims"] for row in rows] == [1, 0, 0, 0]


async def test_what_was_sent_as_often_as_it_may_be_or_is_over_wakes_nobody(
    world: World, settings: Settings
) -> None:
    dispatches: Dispatches = world.app.state.dispatcher._dispatches
    resend_after = settings.commands_resend_after
    device_id, _ = await world.device()
    key = (world.tenant_id, device_id)
    wanted = await command(world, device_id)
    assert await dispatches.waiting([key], resend_after) == [device_id]

    sent = (
        "UPDATE ingest.commands SET status = 'sent', sent_at = now() - interval '1 hour',"
        " tried_at = now() - interval '1 hour', attempts = $2, due_at = now() + $3::interval,"
        " expires_at = now() + $4::interval WHERE id = $1"
    )
    soon, past = timedelta(hours=1), timedelta(hours=-1)
    for attempts, due, expires, waiting in (
        (1, soon, soon, [device_id]),
        (MOST_RESENDS, soon, soon, []),
        (1, past, soon, []),
        (1, soon, past, []),
    ):
        await world.query(sent, wanted, attempts, due, expires)
        assert await dispatches.waiting([key], resend_after) == waiting


async def test_a_thousand_commands_reach_a_thousand_devices(world: World) -> None:
    count = 1_000
    await world.query(
        "INSERT INTO ingest.devices (tenant_id, id, name, type, created_at, updated_at)"
        " SELECT $1, gen_random_uuid(), 'fleet ' || n, 'pump', now(), now()"
        " FROM generate_series(1, $2) n",
        world.tenant_id,
        count,
    )
    devices = [
        row["id"]
        for row in await world.query(
            "SELECT id FROM ingest.devices WHERE tenant_id = $1", world.tenant_id
        )
    ]
    await world.query(
        "INSERT INTO ingest.commands (tenant_id, id, device_id, name, params, two_way, timeout,"
        "   status, created_by, created_at, expires_at, due_at)"
        " SELECT $1, gen_random_uuid(), id, 'stop', '{}', false, '1 minute', 'queued', 'test', now(),"
        "   now() + interval '1 hour', now() + interval '1 hour'"
        " FROM unnest($2::uuid[]) id",
        world.tenant_id,
        devices,
    )
    got: set[UUID] = set()

    async def send(outgoing: Outgoing) -> Delivered:
        got.add(outgoing.id)
        return Delivered.ACKNOWLEDGED

    for device_id in devices:
        source = Source(device_id, world.tenant_id, 1, 0, {})
        world.app.state.dispatcher.attach(source, send)

    async def done() -> bool:
        rows = await world.query(
            "SELECT count(*) AS done FROM ingest.commands"
            " WHERE tenant_id = $1 AND status = 'succeeded'",
            world.tenant_id,
        )
        return bool(rows[0]["done"] == count)

    await until(done, "all are done")
    assert len(got) == count
