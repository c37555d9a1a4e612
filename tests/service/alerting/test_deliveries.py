"""Telling those who are to be told: once, in order, whatever fails on the way."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Mode
from libs.common.bus.local import LocalBus
from libs.common.bus.subscriptions import listen
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.events.alerting import NotificationDelivered, NotificationFailed
from libs.common.events.base import Event
from services.alerting.domain.notification import MOST_ATTEMPTS
from services.alerting.store.due import DueNotifications
from services.alerting.store.notifications import Claim
from services.alerting.usecases import deliveries
from tests.alarms import Mailbox, Plant, Receiver, rows, running, settings_for, shift_clock
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.waiting import until

MAIL = "shift@plant.example"


async def claims_of(plant: Plant, due: DueNotifications) -> list[Claim]:
    """Claim whatever is due, and return what of it is this plant's."""
    claims = await due.claim(1000, 1000, {})
    return [claim for claim in claims if claim.tenant_id == plant.tenant_id]


async def test_a_broken_rule_is_told_by_mail_and_by_a_signed_webhook_and_so_is_its_end(
    plant: Plant, post: Mailbox, web: Receiver
) -> None:
    address = f"{uuid4()}@plant.example"
    await plant.knows_the_device_as("pump-2")
    by_mail = await plant.mails_to(address)
    by_hook, secret = await plant.posts_to(web.url("/story"))
    fired = plant.triggered()
    await plant.hears(fired)
    await until(lambda: bool(post.to(address) and web.at("/story")), "both were told")

    [mail] = post.to(address)
    assert mail["Subject"] == "[CRITICAL] Bearing temperature · pump-2"
    [hook] = web.at("/story")
    assert hook.type == "alert.opened"
    assert hook.is_signed_by(secret)
    assert hook.facts["device_name"] == "pump-2"
    [alert] = await plant.alerts()
    assert hook.facts["alert_id"] == alert["id"]
    assert hook.facts["url"] == f"https://console.example/alerts/{alert['id']}"
    told = await plant.notification_is(alert["id"], by_mail, "opened", "delivered")
    assert mail["Message-ID"] == f"<{told['id']}@plant.example>"

    await plant.hears(plant.cleared(fired))
    await plant.notification_is(alert["id"], by_mail, "resolved", "delivered")
    await plant.notification_is(alert["id"], by_hook, "resolved", "delivered")
    assert [hook.type for hook in web.at("/story")] == ["alert.opened", "alert.resolved"]
    assert len(post.to(address)) == 2
    assert post.to(address)[0]["References"] == post.to(address)[1]["References"]


async def test_the_same_event_twice_is_told_once(
    plant: Plant, post: Mailbox, web: Receiver
) -> None:
    address = f"{uuid4()}@plant.example"
    await plant.mails_to(address)
    event = plant.triggered()
    await plant.hears(event, event, plant.triggered(firing_id=event.firing_id))
    await plant.hears(plant.triggered(value=98.0))  # folded: not told again either
    await until(lambda: bool(post.to(address)), "a mail")
    await plant.hears(plant.anomaly())
    await until(lambda: len(post.to(address)) == 2, "the anomaly's mail")
    assert [m["Subject"].split(" · ")[0] for m in post.to(address)] == [
        "[CRITICAL] Bearing temperature",
        "[CRITICAL] Unusual vibration",
    ]


async def test_what_fails_at_first_is_delivered_later_under_the_same_id(
    plant: Plant, web: Receiver, database_urls: DatabaseUrls
) -> None:
    web.answers["/shaky"] = [500, 503]
    channel, secret = await plant.posts_to(web.url("/shaky"))
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    waiting = await plant.notification_is(alert["id"], channel, "opened", "pending", attempts=1)
    assert waiting["reason"] == "HTTP 500"
    await shift_clock(database_urls, "7 seconds")
    await until(lambda: len(web.at("/shaky")) == 2, "a second attempt after 5 s and a bit")
    await shift_clock(database_urls, "1 minute")
    told = await plant.notification_is(alert["id"], channel, "opened", "delivered")
    assert told["attempts"] == 3
    hooks = web.at("/shaky")
    assert len({hook.id for hook in hooks}) == 1
    assert all(hook.is_signed_by(secret) for hook in hooks)


async def test_an_attempt_waits_as_long_as_it_should(
    plant: Plant, web: Receiver, database_urls: DatabaseUrls
) -> None:
    web.answers["/early"] = [500]
    channel, _ = await plant.posts_to(web.url("/early"))
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    await plant.notification_is(alert["id"], channel, "opened", "pending", attempts=1)
    [row] = await rows(
        database_urls,
        "SELECT due_at - sec.iiot_now() AS wait FROM alerting.notifications WHERE tenant_id = $1",
        plant.tenant_id,
    )
    assert timedelta(seconds=3) < row["wait"] < timedelta(seconds=6.3)


async def test_a_worker_that_dies_between_sending_and_recording_leaves_it_to_be_sent_again(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    web: Receiver,
) -> None:
    settings = settings_for(database_urls, hook_port=web.port)
    engine = Database(database_urls.engine("alerting"), across_tenants=True)
    due = DueNotifications(engine, settings.lease)
    # The worker is the test: this alerting delivers nothing by itself.
    async with running(settings.model_copy(update={"delivers": False}), bus, keys) as app:
        plant = Plant(app, principal_headers, bus.publish, uuid4())
        channel, _ = await plant.posts_to(web.url("/crash"))
        await plant.hears(plant.triggered())
        [alert] = await plant.has_alerts("new")
        [claim] = await claims_of(plant, due)
        async with app.state.transactions.begin(plant.tenant_id) as store:
            dispatch = await deliveries.prepare(store, claim)
        assert dispatch is not None
        await app.state.courier.send(dispatch.channel, dispatch.notice, now=SystemClock().now())
        assert len(web.at("/crash")) == 1  # and here it dies

        assert await claims_of(plant, due) == [], "nobody else may have it while the lease lasts"
        await shift_clock(database_urls, "31 seconds")
        try:
            async with running(settings, LocalBus(database_urls.bus, SystemClock()), keys):
                told = await plant.notification_is(alert["id"], channel, "opened", "delivered")
        finally:
            await shift_clock(database_urls, "0")
        assert told["attempts"] == 2
        first, second = web.at("/crash")
        assert first.id == second.id == told["id"]

        # The dead come back to life too late to have a say.
        async with app.state.transactions.begin(plant.tenant_id) as store:
            assert not await store.notifications.give_up(claim, "too late")
        await plant.notification_is(alert["id"], channel, "opened", "delivered")
    await engine.close()


async def test_a_hanging_mail_server_delays_nobody_else(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    web: Receiver,
) -> None:
    # A web server makes a fine mail server that never says hello.
    settings = settings_for(
        database_urls, mail_port=web.port, hook_port=web.port, deliveries_at_once=20
    )
    async with running(settings, bus, keys) as app:
        plant = Plant(app, principal_headers, bus.publish, uuid4())
        mails = [await plant.mails_to(f"{n}-{MAIL}") for n in range(3)]
        hook, _ = await plant.posts_to(web.url("/swift"))
        web.gates["/stuck"] = asyncio.Event()
        stuck, _ = await plant.posts_to(web.url("/stuck"))
        await plant.hears(*(plant.triggered(rule_id=uuid4()) for _ in range(10)))
        await until(lambda: len(web.at("/swift")) == 10, "the webhook is told", within_s=8)
        alerts = await plant.has_alerts(*["new"] * 10)
        for channel in (*mails, stuck):
            found = await plant.list_of(alerts[0]["id"], "notifications")
            [state] = [n["status"] for n in found if n["channel_id"] == str(channel)]
            assert state in ("sending", "pending")
        await plant.notification_is(alerts[0]["id"], hook, "opened", "delivered")


async def test_people_hear_nothing_of_what_was_over_before_they_could_be_told(
    plant: Plant, web: Receiver, database_urls: DatabaseUrls
) -> None:
    web.answers["/late"] = [500] * 5
    channel, _ = await plant.posts_to(web.url("/late"))
    fired = plant.triggered()
    await plant.hears(fired)
    [alert] = await plant.has_alerts("new")
    await plant.notification_is(alert["id"], channel, "opened", "pending", attempts=1)
    await plant.hears(plant.cleared(fired))
    told = await plant.notification_is(alert["id"], channel, "opened", "superseded")
    assert told["reason"] == "the alert was resolved before it could be told"
    # It was tried, and may have arrived for all we know: so its end is told.
    await until(lambda: len(web.at("/late")) == 2, "the end is told")
    assert [hook.type for hook in web.at("/late")] == ["alert.opened", "alert.resolved"]


async def test_a_channel_that_answers_gone_is_switched_off_and_says_so(
    plant: Plant, web: Receiver, bus: LocalBus
) -> None:
    web.answers["/gone"] = [410]
    channel, _ = await plant.posts_to(web.url("/gone"))
    await plant.hears(plant.triggered())
    [alert] = await plant.has_alerts("new")
    dead = await plant.notification_is(alert["id"], channel, "opened", "dead")
    assert dead["reason"] == "HTTP 410"
    shown = (await plant.ask("GET", f"/notification-channels/{channel}")).json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "the receiver answered HTTP 410")
    await plant.hears(plant.anomaly())
    await plant.has_alerts("new", "new")
    assert len(web.at("/gone")) == 1


async def test_after_the_last_attempt_it_is_given_up_and_said_aloud(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    web: Receiver,
) -> None:
    said: list[Event] = []

    async def hear(event: Event) -> None:
        said.append(event)

    listen(
        bus,
        "test.notifications",
        {NotificationFailed: hear, NotificationDelivered: hear},
        mode=Mode.PER_REPLICA,
    )
    settings = settings_for(database_urls, hook_port=web.port)
    async with running(settings, bus, keys) as app:
        plant = Plant(app, principal_headers, bus.publish, uuid4())
        web.answers["/down"] = [500]
        channel, _ = await plant.posts_to(web.url("/down"))
        await plant.posts_to(web.url("/up"))
        await plant.hears(plant.triggered())
        [alert] = await plant.has_alerts("new")
        await plant.notification_is(alert["id"], channel, "opened", "pending", attempts=1)
        web.answers["/down"] = [500]
        await rows(
            database_urls,
            "UPDATE alerting.notifications SET attempts = $1, due_at = sec.iiot_now()"
            " WHERE tenant_id = $2 AND channel_id = $3",
            MOST_ATTEMPTS - 1,
            plant.tenant_id,
            channel,
        )
        dead = await plant.notification_is(alert["id"], channel, "opened", "dead")
        assert dead["attempts"] == MOST_ATTEMPTS

        def mine() -> list[Event]:
            return [event for event in said if event.tenant_id == plant.tenant_id]

        await until(lambda: len(mine()) == 2, "both ends are said")
        failed = next(event for event in mine() if isinstance(event, NotificationFailed))
        assert (failed.channel_id, failed.reason) == (channel, "HTTP 500")
        assert any(isinstance(event, NotificationDelivered) for event in mine())


async def test_a_channel_hears_only_of_what_is_severe_enough(plant: Plant, web: Receiver) -> None:
    await plant.posts_to(web.url("/all"))
    await plant.posts_to(web.url("/grave"), min_severity="high")
    await plant.posts_to(web.url("/off"), enabled=False)
    await plant.hears(plant.anomaly(score=0.8), plant.alarm())
    await until(lambda: len(web.at("/all")) == 2 and bool(web.at("/grave")), "all are told")
    assert [hook.facts["title"] for hook in web.at("/grave")] == ["oil low"]
    assert web.at("/off") == []
    # The anomaly gets worse: now it is for the other channel as well, and the first knows already.
    await plant.hears(plant.anomaly(score=0.99))
    await until(lambda: len(web.at("/grave")) == 2, "it got worse")
    assert len(web.at("/all")) == 2


async def test_each_tenant_is_told_of_its_own(a_plant: Callable[[], Plant], web: Receiver) -> None:
    here, there = a_plant(), a_plant()
    _, secret = await here.posts_to(web.url("/here"))
    _, other_secret = await there.posts_to(web.url("/there"))
    await here.hears(here.triggered())
    await there.hears(there.alarm())
    await until(lambda: bool(web.at("/here") and web.at("/there")), "both are told")
    [mine], [theirs] = web.at("/here"), web.at("/there")
    assert mine.facts["tenant_id"] == str(here.tenant_id)
    assert theirs.facts["tenant_id"] == str(there.tenant_id)
    assert mine.is_signed_by(secret)
    with pytest.raises(Exception, match="signature"):
        mine.is_signed_by(other_secret)


async def test_the_worker_that_crosses_tenants_sees_nothing_but_what_it_must(
    plant: Plant, database_urls: DatabaseUrls
) -> None:
    granted = await rows(
        database_urls,
        "SELECT table_name, column_name, privilege_type FROM information_schema.column_privileges"
        " WHERE grantee = 'alerting_engine'"
        " AND table_name NOT IN ('inbox', 'outbox', 'idempotency_keys')",
    )
    seen = {(row["table_name"], row["column_name"]) for row in granted}
    assert {table for table, _ in seen} == {"notifications", "firings"}
    assert not {"reason", "receipt", "channel_name"} & {column for _, column in seen}


async def test_two_workers_share_what_is_due_and_send_nothing_twice(
    plant: Plant,
    app: FastAPI,
    database_urls: DatabaseUrls,
    keys: KeySource,
    web: Receiver,
) -> None:
    settings = settings_for(database_urls, hook_port=web.port)
    paths = [f"/share/{n}" for n in range(4)]
    for path in paths:
        await plant.posts_to(web.url(path))
    async with running(settings, LocalBus(database_urls.bus, SystemClock()), keys):
        await plant.hears(*(plant.triggered(rule_id=uuid4()) for _ in range(20)))

        def ids() -> list[str]:
            return [hook.id for path in paths for hook in web.at(path)]

        await until(lambda: len(ids()) >= 80, "eighty webhooks")

        async def is_all_done() -> bool:
            [row] = await rows(
                database_urls,
                "SELECT count(*) FILTER (WHERE status = 'delivered') AS done"
                " FROM alerting.notifications WHERE tenant_id = $1",
                plant.tenant_id,
            )
            return bool(row["done"] == 80)

        await until(is_all_done, "all are recorded")
        assert len(ids()) == len(set(ids())) == 80
        assert all(UUID(one) for one in ids())


async def test_workers_at_the_same_moment_claim_nothing_twice(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    web: Receiver,
) -> None:
    settings = settings_for(database_urls, hook_port=web.port, delivers=False)
    async with running(settings, bus, keys) as app:
        plant = Plant(app, principal_headers, bus.publish, uuid4())
        for n in range(5):
            await plant.posts_to(web.url(f"/claims/{n}"))
        await plant.hears(*(plant.triggered(rule_id=uuid4()) for _ in range(8)))
        await plant.has_alerts(*["new"] * 8)
    engine = Database(database_urls.engine("alerting"), across_tenants=True, pool_size=10)
    due = DueNotifications(engine, settings.lease)
    rounds = await asyncio.gather(*(due.claim(100, 3, {}) for _ in range(10)))
    left = await due.claim(1000, 1000, {})
    await engine.close()
    claims = [
        claim.notification_id
        for claim in (*(claim for some in rounds for claim in some), *left)
        if claim.tenant_id == plant.tenant_id
    ]
    assert len(claims) == len(set(claims)) == 40


async def test_what_becomes_due_goes_out_at_once_not_at_the_next_tick(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    web: Receiver,
) -> None:
    settings = settings_for(database_urls, hook_port=web.port, delivery_tick=600)
    async with running(settings, bus, keys) as app:
        plant = Plant(app, principal_headers, bus.publish, uuid4())
        await plant.posts_to(web.url("/prompt"))
        fired = plant.triggered()
        await plant.hears(fired)
        await until(lambda: len(web.at("/prompt")) == 1, "told of the opening", within_s=5)
        await plant.hears(plant.cleared(fired))
        await until(lambda: len(web.at("/prompt")) == 2, "told of the end", within_s=5)


async def test_the_end_is_not_told_before_the_beginning_has_arrived(
    plant: Plant, web: Receiver, database_urls: DatabaseUrls
) -> None:
    web.gates["/slow"] = asyncio.Event()
    channel, _ = await plant.posts_to(web.url("/slow"))
    fired = plant.triggered()
    await plant.hears(fired)
    await until(lambda: len(web.at("/slow")) == 1, "the beginning is on its way")
    await plant.hears(plant.cleared(fired))
    [alert] = await plant.has_alerts("resolved")
    engine = Database(database_urls.engine("alerting"), across_tenants=True)
    claims = await DueNotifications(engine, timedelta(seconds=30)).claim(1000, 1000, {})
    await engine.close()
    assert plant.tenant_id not in {claim.tenant_id for claim in claims}
    await plant.notification_is(alert["id"], channel, "resolved", "pending", attempts=0)
    web.gates["/slow"].set()
    await plant.notification_is(alert["id"], channel, "resolved", "delivered")
    assert [hook.type for hook in web.at("/slow")] == ["alert.opened", "alert.resolved"]


async def test_what_someone_took_on_before_it_could_be_told_is_told_to_systems_alone(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    post: Mailbox,
    web: Receiver,
) -> None:
    settings = settings_for(database_urls, mail_port=post.port, hook_port=web.port)
    async with running(settings.model_copy(update={"delivers": False}), bus, keys) as app:
        plant = Plant(app, principal_headers, bus.publish, uuid4())
        address = f"{uuid4()}@plant.example"
        mail = await plant.mails_to(address)
        hook, _ = await plant.posts_to(web.url("/books"))
        fired = plant.triggered()
        await plant.hears(fired)
        [alert] = await plant.has_alerts("new")
        await plant.ask("POST", f"/alerts/{alert['id']}/acknowledge")
        # Only now does anyone deliver.
        async with running(settings, LocalBus(database_urls.bus, SystemClock()), keys):
            await plant.notification_is(alert["id"], hook, "opened", "delivered")
            told = await plant.notification_is(
                alert["id"], mail, "opened", "superseded", attempts=0
            )
            assert told["reason"] == "the alert was acknowledged before it could be told"
            await plant.hears(plant.cleared(fired))
            await plant.notification_is(alert["id"], hook, "resolved", "delivered")
            assert post.to(address) == []
            assert len(await plant.list_of(alert["id"], "notifications")) == 3


async def test_alerting_is_described_and_ready(app: FastAPI, plant: Plant) -> None:
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://alerting"
    ) as client:
        described = (await client.get("/openapi.json")).json()
        ready = await client.get("/health/ready")
    assert ready.status_code == 200, ready.text
    paths = described["paths"]
    assert paths["/api/v1/alerts/{alert_id}/resolve"]["post"]["x-permission"] == "alerts:resolve"
    assert "/api/v1/notification-channels/{channel_id}/test" in paths
