"""What RabbitMQ adds: replicas that share, queues that are full or gone, and what the broker guards itself."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

import pytest
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from libs.common.bus.base import Mode, Subscription
from libs.common.bus.rabbit import RabbitBus
from libs.common.bus.rabbit_topology import DELIVERY_LIMIT, UNROUTED
from libs.common.errors import Invalid, Unavailable
from tests.contract.bus.world import Listener, RabbitWorld, eventually


async def test_two_replicas_share_the_work(rabbit_world: RabbitWorld) -> None:
    together = asyncio.Barrier(2)

    async def meet_the_other(said: Sequence[str]) -> None:
        if said[0].startswith("meet"):
            async with asyncio.timeout(10):
                await together.wait()

    first, second = Listener(before=meet_the_other), Listener(before=meet_the_other)
    subscription = rabbit_world.subscription("rules.pumps")
    await rabbit_world.service((subscription, first))
    bus = await rabbit_world.service((subscription, second))

    await rabbit_world.say(bus, "meet 1", "meet 2", *[f"{n}" for n in range(20)])

    await eventually(lambda: len(first.done) + len(second.done) >= 22)
    assert sorted(first.done + second.done) == sorted(["meet 1", "meet 2", *map(str, range(20))])
    assert first.done
    assert second.done


async def test_a_shard_has_one_consumer_at_a_time_and_another_takes_over(
    rabbit_world: RabbitWorld,
) -> None:
    telemetry = rabbit_world.type("telemetry.received")
    subscription = rabbit_world.subscription("rules.points", telemetry, sharded=True)
    first, second = Listener(), Listener()
    active = await rabbit_world.service((subscription, first))
    standby = await rabbit_world.service((subscription, second))
    publisher = await rabbit_world.service()

    async def publish(*said: str) -> None:
        await publisher.publish([rabbit_world.message(s, of=telemetry, shard=0) for s in said])

    await publish("1", "2", "3", "4")
    await first.hears("4")
    await active.stop()
    await publish("5", "6")

    await second.hears("6")
    await standby.check()
    assert first.done == ["1", "2", "3", "4"]
    assert second.done == ["5", "6"]


async def test_telemetry_that_no_queue_takes_is_not_accepted(rabbit_world: RabbitWorld) -> None:
    publisher = await rabbit_world.service()
    telemetry = rabbit_world.type("telemetry.received")

    with pytest.raises(Unavailable, match="no queue"):
        await publisher.publish([rabbit_world.message("lost?", of=telemetry, shard=0)])


async def test_when_the_queue_was_deleted_telemetry_is_refused_until_its_reader_is_back(
    rabbit_world: RabbitWorld,
) -> None:
    telemetry = rabbit_world.type("telemetry.received")
    subscription = rabbit_world.subscription("historian.points", telemetry, sharded=True)
    reader = await rabbit_world.service((subscription, Listener()))
    publisher = await rabbit_world.service()
    await publisher.publish([rabbit_world.message("one", of=telemetry, shard=1)])
    await reader.stop()
    async with rabbit_world.channel() as channel:
        await channel.queue_delete(f"{subscription.name}.1")

    with pytest.raises(Unavailable):
        await publisher.publish([rabbit_world.message("two", of=telemetry, shard=1)])

    listener = Listener()
    await rabbit_world.service((subscription, listener))
    await publisher.publish([rabbit_world.message("three", of=telemetry, shard=1)])
    await listener.hears("three")


async def test_a_reader_whose_queue_is_deleted_under_it_declares_it_again(
    rabbit_world: RabbitWorld,
) -> None:
    subscription, listener = rabbit_world.subscription("rules.pumps"), Listener()
    bus = await rabbit_world.service((subscription, listener))
    await rabbit_world.say(bus, "before")
    await listener.hears("before")

    async with rabbit_world.channel() as channel:
        await channel.queue_delete(subscription.name)
        await _comes_back(rabbit_world, subscription)

    await rabbit_world.say(bus, "after")
    await listener.hears("after")


async def test_a_full_queue_refuses_and_takes_again_when_it_was_read(
    rabbit_world: RabbitWorld,
) -> None:
    rabbit_world.queue_max_bytes = 50_000
    go_on = asyncio.Event()

    async def wait(said: Sequence[str]) -> None:
        await go_on.wait()

    listener = Listener(before=wait)
    bus = await rabbit_world.service((rabbit_world.subscription("slow.pumps"), listener))
    accepted = 0

    async def publish_until_full() -> None:
        nonlocal accepted
        while True:
            await rabbit_world.say(bus, f"{accepted}:" + "x" * 1000)
            accepted += 1

    with pytest.raises(Unavailable, match="full"):
        async with asyncio.timeout(30):
            await publish_until_full()
    assert accepted >= 40

    go_on.set()
    await eventually(lambda: len(listener.done) >= accepted)
    await rabbit_world.say(bus, "there is room again")
    await listener.hears("there is room again")
    accepted_ones = [said for said in listener.done if said.endswith("x")][:accepted]
    assert [said.split(":")[0] for said in accepted_ones] == [str(n) for n in range(accepted)]


async def test_an_event_nobody_listens_to_is_kept_among_the_unrouted(
    rabbit_world: RabbitWorld,
) -> None:
    publisher = await rabbit_world.service()
    message = rabbit_world.message("who hears me?")

    await publisher.publish([message])

    async with rabbit_world.channel() as channel:
        found = set()
        async with asyncio.timeout(10):
            while str(message.id) not in found:
                got = await channel.basic_get(UNROUTED, no_ack=True)
                found.add(got.header.properties.message_id)
                await asyncio.sleep(0)


async def test_a_dead_letter_keeps_its_envelope_and_says_how_often_it_was_tried(
    rabbit_world: RabbitWorld,
) -> None:
    async def refuse(said: Sequence[str]) -> None:
        raise Invalid("no such metric")

    subscription = rabbit_world.subscription("rules.pumps")
    bus = await rabbit_world.service((subscription, Listener(before=refuse)))
    message = rabbit_world.message("poison")
    await bus.publish([message])

    [letter] = await rabbit_world.dead_letters_come(subscription)

    assert letter.id == message.id
    async with rabbit_world.channel() as channel:
        got = await channel.basic_get(f"{subscription.name}.dead")
    headers = got.header.properties.headers or {}
    assert got.header.properties.message_type == message.type
    assert headers["tenant"] == str(message.tenant_id)
    assert headers["x-reason"] == "Invalid"
    assert headers["x-attempts"] == 1


async def test_what_is_not_an_event_at_all_ends_among_the_dead_letters(
    rabbit_world: RabbitWorld,
) -> None:
    subscription, listener = rabbit_world.subscription("rules.pumps"), Listener()
    bus = await rabbit_world.service((subscription, listener))
    stranger = Basic.Properties(message_id=str(uuid4()))

    async with rabbit_world.channel() as channel:
        await channel.basic_publish(
            b"hello?", routing_key=subscription.name, properties=stranger, mandatory=True
        )
    await rabbit_world.say(bus, "an event")

    await listener.hears("an event")
    [letter] = await rabbit_world.dead_letters_come(subscription)
    assert letter.body == b"hello?"
    assert listener.done == ["an event"]


async def test_a_message_that_takes_its_reader_down_each_time_is_put_aside_by_the_broker(
    rabbit_world: RabbitWorld,
) -> None:
    subscription = rabbit_world.subscription("rules.pumps")
    await (await rabbit_world.service((subscription, Listener()))).stop()
    publisher = await rabbit_world.service()
    await rabbit_world.say(publisher, "crash")

    async with rabbit_world.channel() as channel:
        for _ in range(DELIVERY_LIMIT + 1):
            got = await channel.basic_get(subscription.name)
            assert got.delivery_tag is not None
            await channel.basic_nack(got.delivery_tag, requeue=True)

    [letter] = await rabbit_world.dead_letters_come(subscription)
    assert letter.body == b"crash"


async def test_a_changed_limit_keeps_the_queue_and_what_lies_in_it(
    rabbit_world: RabbitWorld,
) -> None:
    subscription, listener = rabbit_world.subscription("rules.pumps"), Listener()
    await (await rabbit_world.service((subscription, Listener()))).stop()
    await rabbit_world.say(await rabbit_world.service(), "still here")

    rabbit_world.queue_max_bytes *= 2
    bus = await rabbit_world.service((subscription, listener))

    await listener.hears("still here")
    await bus.check()


async def test_two_relays_of_one_outbox_keep_its_order(rabbit_world: RabbitWorld) -> None:
    listener = Listener()
    first = await rabbit_world.service_with_outbox(
        (rabbit_world.subscription("rules.pumps"), listener)
    )
    second = await rabbit_world.service_with_outbox()
    said = [f"{number}" for number in range(60)]

    for number, word in enumerate(said):
        outbox = (first, second)[number % 2].outbox(rabbit_world.schema)
        async with rabbit_world.transaction() as connection:
            await outbox.write(connection, [rabbit_world.message(word)])
        outbox.committed()

    await listener.hears(*said)
    assert listener.done == said


async def test_no_broker_at_the_start_is_said_so(rabbit_world: RabbitWorld) -> None:
    rabbit_world.url = "amqp://guest:guest@127.0.0.1:1/"
    rabbit_world.start_s = 0.5

    with pytest.raises(Unavailable, match="no connection"):
        await rabbit_world.service((Subscription("rules.pumps", frozenset({"a.v1"})), Listener()))


async def _comes_back(world: RabbitWorld, subscription: Subscription) -> None:
    """Wait until somebody consumes from the queue again."""
    async with asyncio.timeout(20):
        while True:
            async with world.channel() as channel:
                try:
                    declared = await channel.queue_declare(subscription.name, passive=True)
                except ChannelNotFoundEntity:
                    declared = None
            if declared is not None and declared.consumer_count:
                return
            await asyncio.sleep(0.02)


async def test_a_replica_is_told_that_it_may_have_missed_something(
    rabbit_world: RabbitWorld,
) -> None:
    heard, gaps = Listener(), []
    subscription = replace(
        rabbit_world.subscription("gateway.cache", mode=Mode.PER_REPLICA),
        on_gap=lambda: gaps.append("gap"),
    )
    bus = await rabbit_world.service((subscription, heard))
    await rabbit_world.say(bus, "before")
    await heard.hears("before")
    assert gaps == []

    assert isinstance(bus, RabbitBus)
    await (await bus._in.connection()).close()

    await eventually(lambda: gaps == ["gap"])
    # By then it hears again.
    await rabbit_world.say(bus, "after")
    await heard.hears("after")
