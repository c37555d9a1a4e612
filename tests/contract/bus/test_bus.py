"""What every bus promises, told on each."""

import asyncio
from collections.abc import Sequence
from itertools import count

import pytest

from libs.common.bus.base import Mode
from libs.common.errors import Conflict, Invalid, Unavailable
from tests.contract.bus.world import SHARDS, Listener, World, eventually


async def test_an_event_is_delivered_once_to_each_service_that_listens(bus_world: World) -> None:
    rules, alerting = Listener(), Listener()
    await bus_world.service((bus_world.subscription("rules.pumps"), rules))
    await bus_world.service((bus_world.subscription("alerting.pumps"), alerting))
    publisher = await bus_world.service()

    await bus_world.say(publisher, "press-7 started")
    await bus_world.say(publisher, "that was all")

    await rules.hears("that was all")
    await alerting.hears("that was all")
    assert rules.done == alerting.done == ["press-7 started", "that was all"]


async def test_the_envelope_arrives_as_it_was_sent(bus_world: World) -> None:
    listener = Listener()
    bus = await bus_world.service((bus_world.subscription("rules.pumps"), listener))
    sent = bus_world.message('{"pump": 7}')

    await bus.publish([sent])

    await listener.hears('{"pump": 7}')
    assert listener.messages == [sent]


async def test_what_was_published_while_a_service_was_away_waits_for_it(bus_world: World) -> None:
    subscription = bus_world.subscription("rules.pumps")
    before = await bus_world.service((subscription, Listener()))
    await before.stop()
    publisher = await bus_world.service()

    await bus_world.say(publisher, "press-7 started")

    listener = Listener()
    await bus_world.service((subscription, listener))
    await listener.hears("press-7 started")


async def test_a_stopped_service_does_not_hear_again_what_it_has_handled(bus_world: World) -> None:
    subscription = bus_world.subscription("rules.pumps")
    first, second = Listener(), Listener()
    bus = await bus_world.service((subscription, first))
    await bus_world.say(bus, "one", "two", "three")
    await first.hears("three")
    await bus.stop()

    bus = await bus_world.service((subscription, second))
    await bus_world.say(bus, "four")

    await second.hears("four")
    assert second.done == ["four"]


async def test_every_replica_hears_what_is_meant_for_each(bus_world: World) -> None:
    subscription = bus_world.subscription("gateway.revocations", mode=Mode.PER_REPLICA)
    first, second = Listener(), Listener()
    await bus_world.service((subscription, first))
    bus = await bus_world.service((subscription, second))

    await bus_world.say(bus, "user 3 is locked")

    await first.hears("user 3 is locked")
    await second.hears("user 3 is locked")


async def test_events_arrive_in_the_order_they_were_published(bus_world: World) -> None:
    listener = Listener()
    bus = await bus_world.service((bus_world.subscription("rules.pumps", batch=7), listener))
    said = [f"{number}" for number in range(200)]

    for start in range(0, 200, 20):
        await bus_world.say(bus, *said[start : start + 20])

    await listener.hears(*said)
    assert listener.done == said
    assert max(len(call) for call in listener.calls) <= 7


async def test_a_handler_that_fails_twice_is_given_the_event_again_while_others_pass(
    bus_world: World,
) -> None:
    failures = count(1)

    async def fail_twice(said: Sequence[str]) -> None:
        if said == ["shy"] and next(failures) <= 2:
            raise RuntimeError("not yet")

    listener = Listener(before=fail_twice)
    subscription = bus_world.subscription("rules.pumps")
    bus = await bus_world.service((subscription, listener))

    await bus_world.say(bus, "shy", "bold", "brave")

    await listener.hears("shy")
    assert listener.done == ["bold", "brave", "shy"]
    assert listener.calls.count(["shy"]) == 3
    assert await bus_world.dead_letters(subscription) == []


async def test_an_event_that_waits_to_be_tried_again_outlives_its_service(
    bus_world: World,
) -> None:
    async def fail(said: Sequence[str]) -> None:
        if said == ["shy"]:
            raise RuntimeError("not yet")

    failing, healed = Listener(before=fail), Listener()
    subscription = bus_world.subscription("rules.pumps", attempts=100)
    bus = await bus_world.service((subscription, failing))
    await bus_world.say(bus, "shy", "bold", "brave")
    await failing.hears("bold", "brave")

    await bus.stop()
    await bus_world.service((subscription, healed))

    await healed.hears("shy")
    assert healed.done == ["shy"]


async def test_an_event_that_always_fails_is_tried_so_often_and_then_is_a_dead_letter(
    bus_world: World,
) -> None:
    async def fail(said: Sequence[str]) -> None:
        if said == ["cursed"]:
            raise RuntimeError("the handler has a fault")

    listener = Listener(before=fail)
    subscription = bus_world.subscription("rules.pumps", attempts=3)
    bus = await bus_world.service((subscription, listener))

    await bus_world.say(bus, "cursed")

    [letter] = await bus_world.dead_letters_come(subscription)
    assert listener.calls == [["cursed"]] * 3
    assert letter.body == b"cursed"
    assert "the handler has a fault" in letter.reason


async def test_poison_becomes_a_dead_letter_with_its_reason_and_its_neighbours_pass(
    bus_world: World,
) -> None:
    async def refuse_poison(said: Sequence[str]) -> None:
        if "poison" in said:
            raise Invalid("no such metric")

    listener = Listener(before=refuse_poison)
    subscription = bus_world.subscription("rules.pumps")
    bus = await bus_world.service((subscription, listener))

    await bus_world.say(bus, "bread", "poison", "water")

    await listener.hears("water")
    assert listener.done == ["bread", "water"]
    assert listener.calls.count(["poison"]) == 1
    [letter] = await bus_world.dead_letters_come(subscription)
    assert letter.body == b"poison"
    assert "Invalid" in letter.reason
    assert "no such metric" in letter.reason


async def test_a_batch_with_one_bad_message_loses_only_that_one(bus_world: World) -> None:
    gate = asyncio.Event()

    async def refuse_poison(said: Sequence[str]) -> None:
        await gate.wait()
        if "poison" in said:
            raise Invalid("no such metric")

    listener = Listener(before=refuse_poison)
    subscription = bus_world.subscription("historian.points", batch=10)
    bus = await bus_world.service((subscription, listener))
    await bus_world.say(bus, "opens the gate")
    await eventually(lambda: listener.calls)

    await bus_world.say(bus, "a", "b", "poison", "c", "d")
    gate.set()

    await listener.hears("a", "b", "c", "d")
    assert listener.done == ["opens the gate", "a", "b", "c", "d"]
    assert any(len(call) > 1 for call in listener.calls), "it was never given a batch"
    letters = await bus_world.dead_letters_come(subscription)
    assert [letter.body for letter in letters] == [b"poison"]


async def test_what_is_so_already_is_done_and_takes_no_neighbour_with_it(bus_world: World) -> None:
    gate = asyncio.Event()

    async def know_already(said: Sequence[str]) -> None:
        await gate.wait()
        if "known" in said:
            raise Conflict("it is so already")

    listener = Listener(before=know_already)
    subscription = bus_world.subscription("historian.points", batch=10)
    bus = await bus_world.service((subscription, listener))
    await bus_world.say(bus, "opens the gate")
    await eventually(lambda: listener.calls)

    await bus_world.say(bus, "a", "known", "b")
    gate.set()

    await listener.hears("a", "b")
    assert listener.done == ["opens the gate", "a", "b"]
    assert listener.calls.count(["known"]) <= 1
    assert await bus_world.dead_letters(subscription) == []


async def test_while_the_database_is_away_everything_waits_and_nothing_is_given_up(
    bus_world: World,
) -> None:
    away = True

    async def need_the_database(said: Sequence[str]) -> None:
        if away:
            raise Unavailable("the database is restarting")

    listener = Listener(before=need_the_database)
    subscription = bus_world.subscription("historian.points", attempts=2)
    bus = await bus_world.service((subscription, listener))

    await bus_world.say(bus, "one", "two", "three")
    await eventually(lambda: len(listener.calls) >= 4)
    assert listener.calls == [["one"]] * len(listener.calls)
    away = False

    await listener.hears("three")
    assert listener.done == ["one", "two", "three"]
    assert await bus_world.dead_letters(subscription) == []


async def test_a_pausing_service_can_be_stopped_and_its_events_wait(bus_world: World) -> None:
    async def need_the_database(said: Sequence[str]) -> None:
        raise Unavailable("the database is away")

    listener, healed = Listener(before=need_the_database), Listener()
    subscription = bus_world.subscription("historian.points")
    bus = await bus_world.service((subscription, listener))
    await bus_world.say(bus, "one", "two")
    await eventually(lambda: len(listener.calls) >= 2)

    async with asyncio.timeout(30):
        await bus.stop()

    await bus_world.service((subscription, healed))
    await healed.hears("two")
    assert healed.done == ["one", "two"]


async def test_what_commits_is_published_in_the_order_of_the_commits(bus_world: World) -> None:
    listener = Listener()
    bus = await bus_world.service_with_outbox((bus_world.subscription("rules.pumps"), listener))
    outbox = bus.outbox(bus_world.schema)
    said = [f"{number}" for number in range(30)]

    for word in said:
        async with bus_world.transaction() as connection:
            await outbox.write(connection, [bus_world.message(word)])
        outbox.committed()

    await listener.hears(*said)
    assert listener.done == said


async def test_the_outbox_keeps_the_envelope(bus_world: World) -> None:
    listener = Listener()
    bus = await bus_world.service_with_outbox((bus_world.subscription("rules.pumps"), listener))
    sent = bus_world.message("press-7 started")

    async with bus_world.transaction() as connection:
        await bus.outbox(bus_world.schema).write(connection, [sent])
    bus.outbox(bus_world.schema).committed()

    await listener.hears("press-7 started")
    assert listener.messages == [sent]


async def test_what_is_rolled_back_is_never_published(bus_world: World) -> None:
    listener = Listener()
    bus = await bus_world.service_with_outbox((bus_world.subscription("rules.pumps"), listener))
    outbox = bus.outbox(bus_world.schema)

    async with bus_world.transaction() as connection:
        await outbox.write(connection, [bus_world.message("never said")])
        await connection.rollback()
    async with bus_world.transaction() as connection:
        await outbox.write(connection, [bus_world.message("said")])
    outbox.committed()

    await listener.hears("said")
    assert listener.done == ["said"]


async def test_what_another_process_committed_leaves_without_a_word(bus_world: World) -> None:
    listener = Listener()
    bus = await bus_world.service_with_outbox((bus_world.subscription("rules.pumps"), listener))

    async with bus_world.transaction() as connection:
        await bus.outbox(bus_world.schema).write(connection, [bus_world.message("quietly")])

    await listener.hears("quietly")


async def test_a_service_that_ends_in_the_middle_of_an_event_is_given_it_again(
    bus_world: World,
) -> None:
    async def hang(said: Sequence[str]) -> None:
        await asyncio.Event().wait()

    hanging, healthy = Listener(before=hang), Listener()
    subscription = bus_world.subscription("rules.pumps")
    bus = await bus_world.service((subscription, hanging))
    await bus_world.say(bus, "one", "two")
    await eventually(lambda: hanging.calls)

    await bus.stop()
    await bus_world.service((subscription, healthy))

    await healthy.hears("two")
    assert hanging.done == []
    assert healthy.done == ["one", "two"]


async def test_stopping_lets_the_handler_finish_what_it_began(bus_world: World) -> None:
    finish, began = asyncio.Event(), asyncio.Event()

    async def take_a_while(said: Sequence[str]) -> None:
        began.set()
        await finish.wait()

    slow, second = Listener(before=take_a_while), Listener()
    subscription = bus_world.subscription("rules.pumps")
    bus = await bus_world.service((subscription, slow))
    await bus_world.say(bus, "one", "two")
    await began.wait()

    asyncio.get_running_loop().call_later(0.2, finish.set)
    await bus.stop()
    successor = await bus_world.service((subscription, second))
    await bus_world.say(successor, "three")

    await second.hears("three")
    assert slow.done[0] == "one"
    assert slow.done + second.done == ["one", "two", "three"]


async def test_the_batches_of_a_shard_stay_in_order(bus_world: World) -> None:
    listener = Listener()
    telemetry = bus_world.type("telemetry.received")
    subscription = bus_world.subscription("rules.points", telemetry, sharded=True, batch=4)
    bus = await bus_world.service((subscription, listener))

    for number in range(40):
        shard = number % SHARDS
        await bus.publish([bus_world.message(f"{shard}:{number}", of=telemetry, shard=shard)])

    await eventually(lambda: len(listener.done) >= 40)
    for shard in range(SHARDS):
        heard = [said for said in listener.done if said.startswith(f"{shard}:")]
        assert heard == [f"{shard}:{number}" for number in range(shard, 40, SHARDS)]


async def test_every_replica_can_hear_all_shards(bus_world: World) -> None:
    telemetry = bus_world.type("telemetry.received")
    subscription = bus_world.subscription(
        "gateway.live", telemetry, sharded=True, mode=Mode.PER_REPLICA
    )
    first, second = Listener(), Listener()
    await bus_world.service((subscription, first))
    bus = await bus_world.service((subscription, second))

    for shard in range(SHARDS):
        await bus.publish([bus_world.message(f"{shard}", of=telemetry, shard=shard)])

    await first.hears("0", "1")
    await second.hears("0", "1")


async def test_what_nobody_subscribed_to_is_delivered_to_nobody(bus_world: World) -> None:
    listener = Listener()
    bus = await bus_world.service((bus_world.subscription("rules.pumps"), listener))

    await bus.publish([bus_world.message("unheard", of=bus_world.type("pump.painted"))])
    await bus_world.say(bus, "heard")

    await listener.hears("heard")
    assert listener.done == ["heard"]


async def test_a_slow_handler_of_one_subscription_does_not_delay_another(bus_world: World) -> None:
    go_on = asyncio.Event()

    async def take_very_long(said: Sequence[str]) -> None:
        await go_on.wait()

    slow, quick = Listener(before=take_very_long), Listener()
    bus = await bus_world.service(
        (bus_world.subscription("ml.pumps"), slow),
        (bus_world.subscription("rules.pumps"), quick),
    )

    await bus_world.say(bus, "one", "two", "three")

    await quick.hears("three")
    assert slow.done == []
    go_on.set()
    await slow.hears("three")


async def test_a_bus_in_use_says_so_and_one_that_was_stopped_refuses(bus_world: World) -> None:
    bus = await bus_world.service((bus_world.subscription("rules.pumps"), Listener()))
    await bus.check()

    await bus.stop()

    with pytest.raises(Unavailable):
        await bus.check()
    with pytest.raises(Unavailable):
        await bus_world.say(bus, "too late")


async def test_a_replica_that_stumbles_over_what_each_must_hear_is_told_again(
    bus_world: World,
) -> None:
    """A revocation that is dropped for one exception would leave a door open."""
    failures = count(1)

    async def stumble_once(said: Sequence[str]) -> None:
        if next(failures) == 1:
            raise RuntimeError("not yet")

    listener = Listener(before=stumble_once)
    subscription = bus_world.subscription("gateway.revocations", mode=Mode.PER_REPLICA)
    bus = await bus_world.service((subscription, listener))

    await bus_world.say(bus, "user 3 is locked")

    await listener.hears("user 3 is locked")


@pytest.mark.parametrize("mode", Mode)
async def test_something_cancelled_that_a_handler_waited_for_is_a_failure_like_any_other(
    bus_world: World, mode: Mode
) -> None:
    async def wait_for_what_is_cancelled(said: Sequence[str]) -> None:
        if said == ["cursed"]:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    listener = Listener(before=wait_for_what_is_cancelled)
    subscription = bus_world.subscription("rules.pumps", mode=mode, attempts=2)
    bus = await bus_world.service((subscription, listener))

    await bus_world.say(bus, "one", "cursed", "two")

    await listener.hears("two")
    await eventually(lambda: listener.calls.count(["cursed"]) == 2)
    await bus_world.say(bus, "three")
    await listener.hears("three")
    await bus.check()


async def test_a_subscription_that_has_ended_is_named_as_the_reason_not_to_be_ready(
    bus_world: World,
) -> None:
    class _Beyond(BaseException):
        """Not an Exception, so no bus takes it for a failure of the message."""

    async def end_the_task(said: Sequence[str]) -> None:
        raise _Beyond

    ended, other = Listener(before=end_the_task), Listener()
    subscription = bus_world.subscription("rules.pumps")
    bus = await bus_world.service(
        (subscription, ended), (bus_world.subscription("alerting.pumps"), other)
    )
    await bus.check()

    await bus_world.say(bus, "one")

    await other.hears("one")
    await eventually(lambda: ended.calls)
    with pytest.raises(Unavailable, match=subscription.name):
        await bus.check()
