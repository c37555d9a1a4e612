"""Saying where notices go."""

from collections.abc import Callable
from uuid import uuid4

import pytest

from libs.common.http.pages import encode_cursor
from services.alerting.api.channels import _Position
from tests.alarms import Mailbox, Plant, Receiver, rows
from tests.database import DatabaseUrls

CHANNELS = "/notification-channels"


async def test_a_webhooks_secret_is_shown_once_and_never_again(plant: Plant, web: Receiver) -> None:
    body = {"name": "hook", "kind": "webhook", "config": {"url": web.url("/x?key=abc")}}
    made = await plant.ask("POST", CHANNELS, json=body)
    assert made.status_code == 201
    secret = made.json()["secret"]
    assert secret.startswith("whsec_")
    path = f"{CHANNELS}/{made.json()['id']}"
    for answer in (
        await plant.ask("GET", path),
        await plant.ask("GET", CHANNELS),
        await plant.ask("PUT", path, json=body | {"name": "renamed"}),
        await plant.ask("POST", f"{path}/test"),
    ):
        assert answer.status_code == 200
        assert secret not in answer.text
        assert "whsec" not in answer.text


async def test_a_forged_cursor_is_refused_before_it_reaches_the_database(plant: Plant) -> None:
    forged = encode_cursor(_Position("a name\0that no row can have", uuid4()))
    answer = await plant.ask("GET", CHANNELS, params={"cursor": forged})
    assert answer.status_code == 400
    assert [error["pointer"] for error in answer.json()["errors"]] == ["?cursor"]


async def test_who_may_only_look_does_not_see_a_webhooks_path(plant: Plant, web: Receiver) -> None:
    channel, _ = await plant.posts_to(web.url("/services/T0/very-secret?key=abc"), name="chat")
    seen = await plant.ask("GET", f"{CHANNELS}/{channel}", "channels:read")
    assert seen.json()["config"]["url"] == f"http://127.0.0.1:{web.port}/…"
    assert "very-secret" not in (await plant.ask("GET", CHANNELS, "channels:read")).text
    own = await plant.ask("GET", f"{CHANNELS}/{channel}", "channels:read", "channels:write")
    assert own.json()["config"]["url"].endswith("very-secret?key=abc")


async def test_operators_of_the_platform_see_no_addresses_and_no_secrets(
    plant: Plant, database_urls: DatabaseUrls
) -> None:
    granted = await rows(
        database_urls,
        "SELECT column_name FROM information_schema.column_privileges"
        " WHERE grantee = 'iiot_observer' AND table_name = 'channels'",
    )
    assert not {"config", "secret", "name"} & {row["column_name"] for row in granted}


@pytest.mark.parametrize(
    ("kind", "config", "pointer"),
    [
        ("email", {"address": "not an address"}, "#/config/address"),
        ("email", {"address": "a@b.example\r\nBcc: c@d.example"}, "#/config/address"),
        ("email", {}, "#/config/address"),
        ("email", {"address": "a@b.example", "cc": "c@d.example"}, "#/config/cc"),
        ("webhook", {"url": "http://169.254.169.254/latest/meta-data"}, "#/config/url"),
        ("webhook", {"url": "https://[::ffff:10.0.0.1]/"}, "#/config/url"),
        ("webhook", {"url": "http://127.0.0.1:1/"}, "#/config/url"),
        ("webhook", {"url": "ftp://hooks.example/"}, "#/config/url"),
        ("pigeon", {}, "#"),
    ],
)
async def test_what_nothing_may_be_sent_to_is_refused_and_said_where(
    plant: Plant, kind: str, config: dict[str, str], pointer: str
) -> None:
    body = {"name": "bad", "kind": kind, "config": config}
    answer = await plant.ask("POST", CHANNELS, json=body)
    assert answer.status_code == 422, answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_a_change_is_judged_like_a_new_channel(plant: Plant, web: Receiver) -> None:
    channel, _ = await plant.posts_to(web.url("/first"))
    path = f"{CHANNELS}/{channel}"
    inward = {"name": "n", "kind": "webhook", "config": {"url": "http://127.0.0.1:22/"}}
    assert (await plant.ask("PUT", path, json=inward)).status_code == 422
    other_kind = {"name": "n", "kind": "email", "config": {"address": "a@b.example"}}
    refused = await plant.ask("PUT", path, json=other_kind)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/kind")
    moved = {
        "name": "moved",
        "kind": "webhook",
        "config": {"url": web.url("/second")},
        "min_severity": "high",
        "enabled": False,
    }
    answer = await plant.ask("PUT", path, json=moved)
    assert answer.status_code == 200
    assert answer.json()["version"] == 2
    shown = (await plant.ask("GET", path)).json()
    assert (shown["config"]["url"], shown["min_severity"], shown["enabled"]) == (
        web.url("/second"),
        "high",
        False,
    )


async def test_a_moved_webhook_keeps_its_secret(plant: Plant, web: Receiver) -> None:
    channel, secret = await plant.posts_to(web.url("/before"))
    moved = {"name": "moved", "kind": "webhook", "config": {"url": web.url("/after")}}
    await plant.ask("PUT", f"{CHANNELS}/{channel}", json=moved)
    assert (await plant.ask("POST", f"{CHANNELS}/{channel}/test")).json()["delivered"]
    [hook] = web.at("/after")
    assert hook.is_signed_by(secret)


async def test_trying_a_channel_sends_one_message_and_says_how_it_went(
    plant: Plant, post: Mailbox, web: Receiver
) -> None:
    address = f"{uuid4()}@plant.example"
    mail = await plant.mails_to(address)
    answer = await plant.ask("POST", f"{CHANNELS}/{mail}/test")
    assert answer.json()["delivered"], answer.text
    assert "Test" in post.to(address)[0]["Subject"]
    web.answers["/sad"] = [500]
    sad, _ = await plant.posts_to(web.url("/sad"))
    answer = await plant.ask("POST", f"{CHANNELS}/{sad}/test")
    assert answer.json() == {"delivered": False, "detail": "HTTP 500"}
    assert [hook.type for hook in web.at("/sad")] == ["alert.test"]


async def test_two_channels_of_a_tenant_have_two_names(
    a_plant: Callable[[], Plant], web: Receiver
) -> None:
    here, there = a_plant(), a_plant()
    await here.posts_to(web.url("/same"))
    body = {"name": web.url("/same"), "kind": "email", "config": {"address": "a@b.example"}}
    assert (await here.ask("POST", CHANNELS, json=body)).status_code == 409
    assert (await there.ask("POST", CHANNELS, json=body)).status_code == 201


async def test_a_removed_channel_is_gone_and_what_waited_for_it_goes_nowhere(
    plant: Plant, web: Receiver
) -> None:
    web.answers["/removed"] = [500]
    channel, _ = await plant.posts_to(web.url("/removed"))
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    await plant.notification_is(alert["id"], channel, "opened", "pending", attempts=1)
    path = f"{CHANNELS}/{channel}"
    assert (await plant.ask("DELETE", path)).status_code == 204
    assert (await plant.ask("GET", path)).status_code == 404
    assert (await plant.ask("DELETE", path)).status_code == 404
    told = await plant.notification_is(alert["id"], channel, "opened", "superseded")
    assert told["reason"] == "the channel was removed"
    assert told["channel_name"] == web.url("/removed")


@pytest.mark.parametrize("way", ["GET", "PUT", "DELETE", "POST /test"])
async def test_somebody_elses_channel_looks_like_one_that_never_was(
    a_plant: Callable[[], Plant], web: Receiver, way: str
) -> None:
    here, there = a_plant(), a_plant()
    channel, _ = await there.posts_to(web.url("/theirs"))
    method, _, path = way.partition(" ")
    body = {"name": "mine", "kind": "webhook", "config": {"url": web.url("/mine")}}
    sent = body if method == "PUT" else None
    nobodys = str(uuid4())
    foreign = await here.ask(method, f"{CHANNELS}/{channel}{path}", json=sent)
    unknown = await here.ask(method, f"{CHANNELS}/{nobodys}{path}", json=sent)
    assert foreign.status_code == unknown.status_code == 404
    problems = [answer.json() | {"request_id": ""} for answer in (foreign, unknown)]
    assert str(problems[0]).replace(str(channel), "ID") == str(problems[1]).replace(nobodys, "ID")
    assert (await here.ask("GET", CHANNELS)).json()["items"] == []
    assert web.at("/theirs") == []


async def test_channels_are_listed_by_name_page_by_page(plant: Plant) -> None:
    for name in ("c", "a", "b"):
        await plant.mails_to(f"{name}@plant.example")
    first = (await plant.ask("GET", CHANNELS, params={"limit": 2})).json()
    rest = (await plant.ask("GET", CHANNELS, params={"cursor": first["next_cursor"]})).json()
    names = [channel["name"] for channel in first["items"] + rest["items"]]
    assert names == ["a@plant.example", "b@plant.example", "c@plant.example"]


async def test_channels_need_their_own_permissions(plant: Plant) -> None:
    body = {"name": "n", "kind": "email", "config": {"address": "a@b.example"}}
    assert (await plant.ask("POST", CHANNELS, "channels:read", json=body)).status_code == 403
    assert (await plant.ask("GET", CHANNELS, "alerts:read")).status_code == 403
