"""The broker with the users that the generator writes: each service works, and in its place."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aiormq
import pytest
from aiormq.exceptions import AMQPError

from deploy.local.rabbitmq import RabbitMQ, find_rabbitmq
from deploy.secrets import write_secrets
from libs.common.bus.base import Mode, Subscription
from libs.common.bus.rabbit import RabbitBus
from tests.contract.deploy.composition import COMPOSE

CONF = COMPOSE.parent / "deploy" / "rabbitmq.conf"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    write_secrets(folder)
    return folder


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, secrets: Path) -> Iterator[RabbitMQ]:
    """A broker of this module's own, configured as in docker-compose.yml."""
    folder = tmp_path_factory.mktemp("broker") / "rabbitmq"
    definitions = folder / "data" / "definitions.json"
    definitions.parent.mkdir(parents=True)
    definitions.write_text((secrets / "rabbitmq_definitions.json").read_text())
    config = dict(re.findall(r"(?m)^([\w.]+) = (.+)$", CONF.read_text()))
    assert config["definitions.local.path"] == "/run/secrets/rabbitmq_definitions.json"
    here = {"definitions.local.path": str(definitions), "disk_free_limit.absolute": "200MB"}
    server = RabbitMQ(folder, find_rabbitmq(), config=config | here)
    server.start()
    yield server
    server.stop()


def url(broker: RabbitMQ, secrets: Path, service: str) -> str:
    """Return a service's URL, at this broker's address."""
    parts = urlsplit((secrets / f"{service}_bus_url").read_text())
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{broker.port}"))


async def test_a_service_declares_hears_and_says_all_it_must(
    broker: RabbitMQ, secrets: Path
) -> None:
    bus = RabbitBus(url(broker, secrets, "rules"), service="rules", shards=2)

    async def heed(messages: object) -> None:
        """Nothing is said to it here."""

    types = frozenset({"a.thing.v1"})
    bus.subscribe(Subscription("rules.events", types), heed)
    bus.subscribe(Subscription("rules.telemetry", types, sharded=True), heed)
    bus.subscribe(Subscription("rules.changes", types, mode=Mode.PER_REPLICA), heed)
    await bus.start()
    try:
        await bus.check()
    finally:
        await bus.stop()


async def test_a_service_cannot_read_anothers_queue(broker: RabbitMQ, secrets: Path) -> None:
    owner = await aiormq.connect(url(broker, secrets, "rules"))
    stranger = await aiormq.connect(url(broker, secrets, "ml"))
    try:
        channel = await owner.channel()
        await channel.queue_declare("rules.private", durable=True)
        other = await stranger.channel()
        with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
            await other.basic_get("rules.private")
    finally:
        await owner.close()
        await stranger.close()


async def test_the_user_that_everybody_knows_is_not_there(broker: RabbitMQ) -> None:
    with pytest.raises(AMQPError):
        await aiormq.connect(f"amqp://guest:guest@127.0.0.1:{broker.port}/")


def test_the_broker_took_the_long_patience(broker: RabbitMQ) -> None:
    said = broker.control("eval", "application:get_env(rabbit, consumer_timeout).")
    assert said.strip() == "{ok,14400000}"
