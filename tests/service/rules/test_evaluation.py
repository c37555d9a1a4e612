"""Telemetry in, firings out."""

from uuid import UUID, uuid4

from libs.common.events.base import to_message
from libs.common.events.ingest import DeviceDeleted
from libs.common.events.rules import RuleChanged, RuleCleared, RuleTriggered
from libs.common.events.tenancy import TenantDeleted
from libs.common.severity import Severity
from tests.service.rules.conftest import NOON, World, a_batch, a_rule


async def test_a_bearing_runs_hot_and_cools_down(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    await world.send(series, (0, 70), (1, 91.5), (2, 95), (3, 85))
    await world.send(series, (4, 80), (5, 70))
    triggered, cleared = world.heard
    assert isinstance(triggered, RuleTriggered)
    assert isinstance(cleared, RuleCleared)
    assert triggered.tenant_id == tenant
    assert (triggered.rule_id, triggered.rule_name, triggered.rule_version) == (
        rule,
        "bearing too hot",
        1,
    )
    assert (triggered.device_id, triggered.metric) == (device, "temp")
    assert (triggered.value, triggered.threshold, triggered.operator) == (91.5, 90.0, "gt")
    assert triggered.severity is Severity.CRITICAL
    assert triggered.condition == "above 90"
    assert (triggered.ts - NOON).total_seconds() == 1
    assert (cleared.firing_id, cleared.reason, cleared.value) == (
        triggered.firing_id,
        "recovered",
        80.0,
    )
    assert (cleared.ts - NOON).total_seconds() == 4


async def test_a_rule_made_before_its_device_ever_spoke_works_at_the_first_point(
    world: World,
) -> None:
    tenant, device = uuid4(), uuid4()
    rule = await world.create(tenant, device)
    series = await world.series(tenant, device, "temp")
    await world.send(series, (0, 91))
    assert world.story(rule) == ["triggered 91.0"]


async def test_a_rule_made_after_its_device_spoke_works_at_the_next_point(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    await world.send(series, (0, 99))
    rule = await world.create(tenant, device)
    assert world.story(rule) == []
    await world.send(series, (1, 99))
    assert world.story(rule) == ["triggered 99.0"]


async def test_the_same_batch_again_fires_once(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    batch = await world.send(series, (0, 95), (1, 70), (2, 96))
    told = world.story(rule)
    assert told == ["triggered 95.0", "cleared 70.0 recovered", "triggered 96.0"]
    await world.resend(batch, batch)
    assert world.story(rule) == told


async def test_a_batch_that_comes_again_after_a_restart_fires_once(stopped: World) -> None:
    tenant, device = uuid4(), uuid4()
    async with stopped.running():
        series = await stopped.series(tenant, device, "temp")
        rule = await stopped.create(tenant, device)
        batch = await stopped.send(series, (0, 95), (1, 70), (2, 96))
    async with stopped.running():
        await stopped.resend(batch)
    told = ["triggered 95.0", "cleared 70.0 recovered", "triggered 96.0"]
    assert stopped.story(rule) == told


async def test_a_restart_keeps_what_is_tripped_and_what_is_pending(stopped: World) -> None:
    tenant, device = uuid4(), uuid4()
    async with stopped.running():
        series = await stopped.series(tenant, device, "temp")
        rule = await stopped.create(tenant, device)
        slow = await stopped.create(tenant, device, name="hot for long", **{"for": "PT10S"})
        await stopped.send(series, (0, 95))
    assert stopped.story(rule, slow) == ["triggered 95.0"]
    async with stopped.running():
        await stopped.send(series, (9, 95))
        assert stopped.story(rule, slow) == ["triggered 95.0"]
        await stopped.send(series, (10, 96))
        assert stopped.story(rule, slow) == ["triggered 95.0", "triggered 96.0"]
        await stopped.send(series, (11, 60))
    assert stopped.story(rule) == ["triggered 95.0", "cleared 60.0 recovered"]


async def test_a_late_point_stays_late_over_a_restart(stopped: World) -> None:
    tenant, device = uuid4(), uuid4()
    async with stopped.running():
        series = await stopped.series(tenant, device, "temp")
        rule = await stopped.create(tenant, device)
        await stopped.send(series, (100, 50))
        await stopped.send(series, (50, 95))
    async with stopped.running():
        await stopped.send(series, (60, 95))
        assert stopped.story(rule) == []
        await stopped.send(series, (101, 95))
    assert stopped.story(rule) == ["triggered 95.0"]


async def test_an_old_point_pages_nobody_and_the_next_one_of_today_does(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    slow = await world.create(tenant, device, **{"for": 60})
    await world.send(series, (-300 * 86_400, 99), (-301, 99), received=0)
    assert world.story(rule, slow) == []
    await world.send(series, (1, 95))
    assert world.story(rule, slow) == ["triggered 95.0"]
    await world.send(series, (10, 50), received=311)  # an outage's backlog ends no firing
    assert world.story(rule, slow) == ["triggered 95.0"]


async def test_a_point_ahead_of_its_time_hides_none_that_comes_after_it(stopped: World) -> None:
    tenant, device = uuid4(), uuid4()
    async with stopped.running():
        series = await stopped.series(tenant, device, "temp")
        rule = await stopped.create(tenant, device)
        await stopped.send(series, (290, 50), received=0)
        await stopped.send(series, (1, 95))
        ahead = await stopped.send(series, (291, 70), (292, 99), (293, 60), received=2)
        told = [
            "triggered 95.0", "cleared 70.0 recovered", "triggered 99.0", "cleared 60.0 recovered"
        ]  # fmt: skip
        assert stopped.story(rule) == told
        await stopped.resend(ahead)
    async with stopped.running():
        await stopped.resend(ahead)
        assert stopped.story(rule) == told
        await stopped.send(series, (3, 96))
    assert stopped.story(rule) == [*told, "triggered 96.0"]


async def test_bad_points_neither_trip_nor_clear(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    await world.send(series, (0, 95), quality=2)
    await world.send(series, (1, 50))
    assert world.story(rule) == []
    await world.send(series, (2, 95), quality=1)
    await world.send(series, (3, 50), quality=2)
    assert world.story(rule) == ["triggered 95.0"]


async def test_one_batch_of_two_tenants_fires_for_each_its_own(world: World) -> None:
    ours, theirs = uuid4(), uuid4()
    device, their_device = uuid4(), uuid4()
    series = await world.series(ours, device, "temp")
    their_series = await world.series(theirs, their_device, "temp")
    rule = await world.create(ours, device)
    their_rule = await world.create(theirs, their_device)
    await world.resend(a_batch([(series, 0, 95), (their_series, 0, 99)]))
    assert {(e.tenant_id, e.value) for e in world.heard if isinstance(e, RuleTriggered)} == {
        (ours, 95.0),
        (theirs, 99.0),
    }
    assert world.story(rule) == ["triggered 95.0"]
    assert world.story(their_rule) == ["triggered 99.0"]


async def test_a_rule_on_someone_elses_device_never_fires(world: World) -> None:
    owner, stranger, device = uuid4(), uuid4(), uuid4()
    series = await world.series(owner, device, "temp")
    rule = await world.create(stranger, device)
    await world.send(series, (0, 99))
    assert world.story(rule) == []


async def test_batches_of_several_shards_are_all_evaluated(world: World) -> None:
    tenant = uuid4()
    devices = [uuid4() for _ in range(4)]
    series = [await world.series(tenant, device, "temp") for device in devices]
    rules = [await world.create(tenant, device) for device in devices]
    await world.resend(
        *(a_batch([(series[shard], 0, 95)], shard=shard) for shard in range(4)),
        *(a_batch([(series[shard], 1, 50)], shard=shard) for shard in range(4)),
    )
    for rule in rules:
        assert world.story(rule) == ["triggered 95.0", "cleared 50.0 recovered"]


async def test_a_batch_that_changes_nothing_writes_nothing(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    await world.create(tenant, device)
    await world.send(series, (0, 70))
    await world.send(series, (1, 71), (2, 72))
    assert await _written(world, tenant) == 0
    await world.send(series, (3, 99))
    assert await _written(world, tenant) == 1


async def _written(world: World, tenant: UUID) -> int:
    return await world.fetchval(
        "SELECT count(*) FROM rules.rule_state WHERE tenant_id = $1", tenant
    )


async def test_disabling_a_tripped_rule_clears_it_and_enabling_begins_anew(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    await world.send(series, (0, 95))
    for _ in range(2):  # twice is once
        answer = await world.call(tenant, "POST", f"/{rule}/disable")
        assert (answer.status_code, answer.json()["enabled"]) == (200, False)
    await world.settled()
    told = ["triggered 95.0", "cleared None rule_disabled"]
    assert world.story(rule) == told
    await world.send(series, (1, 99))
    assert world.story(rule) == told
    answer = await world.call(tenant, "POST", f"/{rule}/enable")
    assert (answer.json()["enabled"], answer.json()["version"]) == (True, 3)
    await world.settled()
    await world.send(series, (2, 98))
    assert world.story(rule) == [*told, "triggered 98.0"]
    first, _, second = world.heard
    assert isinstance(first, RuleTriggered)
    assert isinstance(second, RuleTriggered)
    assert first.firing_id != second.firing_id


async def test_deleting_a_tripped_rule_clears_it(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    await world.send(series, (0, 95))
    assert (await world.call(tenant, "DELETE", f"/{rule}")).status_code == 204
    await world.settled()
    await world.send(series, (1, 70), (2, 99))
    assert world.story(rule) == ["triggered 95.0", "cleared None rule_deleted"]
    assert await _written(world, tenant) == 0


async def test_a_deleted_device_takes_its_rules_along(world: World) -> None:
    tenant, device, other = uuid4(), uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule, kept = await world.create(tenant, device), await world.create(tenant, other)
    await world.send(series, (0, 95))
    stranger = DeviceDeleted(tenant_id=uuid4(), at=NOON, device_id=device)
    gone = DeviceDeleted(tenant_id=tenant, at=NOON, device_id=device)
    await world.bus.publish([to_message(stranger)])
    await world.settled()
    assert (await world.call(tenant, "GET", f"/{rule}")).status_code == 200
    await world.bus.publish([to_message(gone), to_message(gone)])
    await world.settled()
    assert world.story(rule) == ["triggered 95.0", "cleared None device_deleted"]
    assert (await world.call(tenant, "GET", f"/{rule}")).status_code == 404
    assert (await world.call(tenant, "GET", f"/{kept}")).status_code == 200


async def test_a_deleted_tenant_takes_all_along_and_says_nothing_more(world: World) -> None:
    tenant, other, device = uuid4(), uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    theirs = await world.series(other, device, "temp")
    rules = [await world.create(tenant, device), await world.create(tenant, uuid4())]
    stays = await world.create(other, device)
    await world.send(series, (0, 95))
    gone = TenantDeleted(tenant_id=tenant, at=NOON, slug="gone")
    await world.bus.publish([to_message(gone), to_message(gone)])
    await world.settled()
    for table in ("rules", "rule_state"):
        kept = await world.fetchval(
            f"SELECT count(*) FROM rules.{table} WHERE tenant_id = $1", tenant
        )
        assert kept == 0, table
    # Every worker is told of each rule, as of any that is deleted.
    told = await world.fetchval(
        "SELECT count(*) FROM bus.log WHERE type = $1 AND tenant_id = $2"
        " AND convert_from(body, 'utf-8') LIKE '%deleted%'",
        RuleChanged.type,
        tenant,
    )
    assert told == len(rules)
    # What was on its way still comes; and nobody is told of a clearing, who would keep that.
    await world.send(series, (1, 70), (2, 99))
    assert world.story(*rules) == ["triggered 95.0"]
    await world.send(theirs, (0, 95))
    assert world.story(stays) == ["triggered 95.0"]


async def test_another_name_leaves_a_firing_alone_and_another_limit_ends_it(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    await world.send(series, (0, 95))
    renamed = a_rule(device, name="another name", severity="low")
    assert (await world.call(tenant, "PUT", f"/{rule}", renamed)).status_code == 200
    await world.settled()
    await world.send(series, (1, 96))
    assert world.story(rule) == ["triggered 95.0"]
    stricter = a_rule(device, condition={"operator": "gt", "value": 50})
    assert (await world.call(tenant, "PUT", f"/{rule}", stricter)).status_code == 200
    await world.settled()
    await world.send(series, (2, 60))
    assert world.story(rule) == ["triggered 95.0", "cleared None rule_changed", "triggered 60.0"]


async def test_a_worker_with_an_old_definition_writes_nothing_by_it(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    # As if the word of the change had not come yet.
    await world.fetchval(
        'UPDATE rules.rules SET condition = \'{"operator": "gt", "value": 97}\','
        " version = 2 WHERE id = $1",
        rule,
    )
    await world.send(series, (0, 95))
    assert world.story(rule) == []
    await world.send(series, (1, 98))
    [triggered] = world.heard
    assert isinstance(triggered, RuleTriggered)
    assert (triggered.rule_version, triggered.value) == (2, 98.0)
