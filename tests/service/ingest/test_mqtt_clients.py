"""Stock MQTT clients, each as its own users drive it: they publish, are sent a command, and answer it."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import aiomqtt
import gmqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from services.ingest.settings import Settings
from tests.reading_times import next_ms
from tests.service.ingest.conftest import World
from tests.waiting import until

NODE_CLIENT = Path(__file__).resolve().parents[3] / "clients" / "mqttjs"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"mqtt_websocket_port": 0})


async def ask(world: World, device_id: UUID) -> str:
    """Send the device a command; return its id."""
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": "set_speed", "params": {"rpm": 900}},
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


async def is_answered(world: World, device_id: UUID, command_id: str) -> None:
    """Wait until the device's answer is with the user."""

    async def done() -> bool:
        answer = await world.http.get(
            f"/api/v1/devices/{device_id}/commands/{command_id}", headers=world.headers
        )
        return bool(answer.json()["status"] == "succeeded")

    await until(done, "the command is answered")


def reply_to(command: bytes | bytearray | str) -> str:
    return json.dumps({"id": json.loads(command)["id"], "status": "succeeded", "result": "ok"})


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_paho(world: World, version: MQTTProtocolVersion, qos: int) -> None:
    device_id, token = await world.device()
    topic = f"v1/devices/{device_id}"

    def drive(command_id: str) -> None:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=str(device_id), protocol=version
        )
        client.username_pw_set(str(device_id), token)
        answered: list[paho.MQTTMessageInfo] = []

        def subscribe(*said: object) -> None:
            client.subscribe(f"{topic}/commands", qos=qos)

        def answer(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
            reply = reply_to(message.payload)
            answered.append(client.publish(f"{topic}/replies", reply, qos=qos))

        client.on_connect = subscribe
        client.on_message = answer
        client.connect("127.0.0.1", world.mqtt_port, 60)
        client.loop_start()
        for number in range(10):
            reading = {"ts": next_ms() + number, "values": {"temp": number}}
            sent = client.publish(f"{topic}/telemetry", json.dumps(reading), qos=qos)
            sent.wait_for_publish(15)
        deadline = asyncio.run(_until(lambda: bool(answered)))
        assert deadline, "no command came"
        answered[0].wait_for_publish(15)
        client.disconnect()
        client.loop_stop()

    command_id = await ask(world, device_id)
    await asyncio.to_thread(drive, command_id)
    await is_answered(world, device_id, command_id)
    points = await world.until_stored(device_id, 10)
    assert [value for _, _, value in points] == [float(n) for n in range(10)]


async def _until(holds: Callable[[], bool]) -> bool:
    await until(holds, "the client has what it waits for")
    return True


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
async def test_aiomqtt(world: World, transport: str, version: aiomqtt.ProtocolVersion) -> None:
    device_id, token = await world.device()
    topic = f"v1/devices/{device_id}"
    over_websocket = transport == "websockets"
    async with aiomqtt.Client(
        "127.0.0.1",
        world.app.state.mqtt_websocket_port if over_websocket else world.mqtt_port,
        identifier=str(device_id),
        username=str(device_id),
        password=token,
        protocol=version,
        transport="websockets" if over_websocket else "tcp",
        websocket_path="/mqtt" if over_websocket else None,
    ) as client:
        await client.subscribe(f"{topic}/commands", qos=1)
        command_id = await ask(world, device_id)
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            await client.publish(f"{topic}/replies", reply_to(message.payload), qos=1)
            break
        await client.publish(f"{topic}/telemetry", '{"temp": 21.5}', qos=1)
    await is_answered(world, device_id, command_id)
    assert await world.until_stored(device_id, 1)


@pytest.mark.parametrize("version", [gmqtt.constants.MQTTv311, gmqtt.constants.MQTTv50])
async def test_gmqtt(world: World, version: int) -> None:
    device_id, token = await world.device()
    topic = f"v1/devices/{device_id}"
    connected, gone = asyncio.Event(), asyncio.Event()
    commands: asyncio.Queue[bytes] = asyncio.Queue()
    client = gmqtt.Client(str(device_id))
    client.set_auth_credentials(str(device_id), token)
    client.set_config({"reconnect_retries": 0})
    client.on_connect = lambda *said: connected.set()
    client.on_disconnect = lambda *said, **more: gone.set()

    def take(client: gmqtt.Client, topic: str, payload: bytes, *said: object) -> int:
        commands.put_nowait(payload)
        return 0

    client.on_message = take
    await client.connect("127.0.0.1", world.mqtt_port, version=version)
    await asyncio.wait_for(connected.wait(), 15)
    client.subscribe(f"{topic}/commands", qos=1)
    command_id = await ask(world, device_id)
    command = await asyncio.wait_for(commands.get(), 15)
    client.publish(f"{topic}/replies", reply_to(command), qos=1)
    client.publish(f"{topic}/telemetry", {"temp": 21.5}, qos=1)
    await is_answered(world, device_id, command_id)
    assert await world.until_stored(device_id, 1)
    await client.disconnect()
    await asyncio.wait_for(gone.wait(), 15)


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
async def test_mosquitto_pub(world: World, version: str, qos: str) -> None:
    device_id, token = await world.device()
    await run(
        "mosquitto_pub", "-h", "127.0.0.1", "-p", str(world.mqtt_port), "-V", version,
        "-i", str(device_id), "-u", str(device_id), "-P", token, "-q", qos,
        "-t", f"v1/devices/{device_id}/telemetry", "-m", '{"temp": 21.5}',
    )  # fmt: skip
    assert await world.until_stored(device_id, 1)


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("session", [[], ["-c"]], ids=["clean", "kept"])
async def test_mosquitto_sub(world: World, version: str, session: list[str]) -> None:
    device_id, token = await world.device()
    kept = ["-x", "3600"] if session and version == "mqttv5" else []
    command_id = await ask(world, device_id)
    said = await run(
        "mosquitto_sub", "-h", "127.0.0.1", "-p", str(world.mqtt_port), "-V", version, *session,
        *kept, "-i", str(device_id), "-u", str(device_id), "-P", token, "-q", "1", "-C", "1",
        "-W", "30", "-t", f"v1/devices/{device_id}/commands",
    )  # fmt: skip
    command = json.loads(said)
    assert (command["id"], command["name"], command["params"]) == (
        command_id,
        "set_speed",
        {"rpm": 900},
    )


async def run(program: str, *words: str, cwd: Path | None = None) -> str:
    """Run a program to its good end; return what it printed."""
    assert shutil.which(program), f"{program} is missing"
    process = await asyncio.create_subprocess_exec(
        program,
        *words,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "NO_UPDATE_NOTIFIER": "1"},
    )
    said, complained = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (said + complained).decode(errors="replace")
    return said.decode()


class PubSubClient:
    """What Arduino's PubSubClient does on a small board: 3.1.1, one buffer of 256 bytes for whatever
    comes or goes, keep-alive 15 s, publishes with QoS 0, answers PUBLISH of QoS 1 with PUBACK.
    """

    BUFFER = 256

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=15)

    def connect(self, client_id: str, user: str, password: str) -> int:
        """Return the return code."""
        body = self._field("MQTT") + b"\x04\xc2\x00\x0f"
        body += self._field(client_id) + self._field(user) + self._field(password)
        self._write(0x10, body)
        first, said = self._read()
        assert first == 0x20
        assert len(said) == 2
        return said[1]

    def publish(self, topic: str, payload: bytes) -> None:
        self._write(0x30, self._field(topic) + payload)

    def subscribe(self, topic: str, qos: int) -> None:
        self._write(0x82, b"\x00\x02" + self._field(topic) + bytes((qos,)))
        assert self._read() == (0x90, b"\x00\x02" + bytes((qos,)))

    def ping(self) -> None:
        self._write(0xC0, b"")
        assert self._read() == (0xD0, b"")

    def loop(self) -> bytes:
        """Return the next message's payload, which is acknowledged."""
        first, said = self._read()
        assert first & 0xF0 == 0x30
        start = 2 + int.from_bytes(said[:2])
        if first & 0x06:
            self._write(0x40, said[start : start + 2])
            start += 2
        return said[start:]

    def disconnect(self) -> None:
        self._socket.sendall(b"\xe0\x00")
        self._socket.close()

    @staticmethod
    def _field(text: str) -> bytes:
        return len(text).to_bytes(2) + text.encode()

    def _write(self, first: int, body: bytes) -> None:
        head = [first]
        rest = len(body)
        while True:
            head.append(rest & 0x7F | (0x80 if rest > 0x7F else 0))
            rest >>= 7
            if not rest:
                break
        assert len(head) + len(body) <= self.BUFFER, "the board has no room for more"
        self._socket.sendall(bytes(head) + body)

    def _read(self) -> tuple[int, bytes]:
        first = self._exactly(1)[0]
        length, shift = 0, 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        assert length <= self.BUFFER, "dropped: larger than MQTT_MAX_PACKET_SIZE"
        return first, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            piece = self._socket.recv(count - len(got))
            assert piece, "the server closed"
            got += piece
        return got


async def test_a_small_board(world: World) -> None:
    device_id, token = await world.device()
    topic = f"v1/devices/{device_id}"
    command_id = await ask(world, device_id)

    def drive() -> None:
        board = PubSubClient(world.mqtt_port)
        assert board.connect(str(device_id), str(device_id), token) == 0
        board.subscribe(f"{topic}/commands", 1)
        command = board.loop()
        board.publish(f"{topic}/replies", reply_to(command).encode())
        for number in range(5):
            board.publish(f"{topic}/telemetry", b'{"temp": %d}' % number)
        board.ping()
        board.disconnect()

    await asyncio.to_thread(drive)
    await is_answered(world, device_id, command_id)
    points = await world.until_stored(device_id, 5)
    assert [value for _, _, value in points] == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.fixture(scope="session")
def mqttjs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MQTT.js, installed as its lock says, beside a device that is written with it."""
    folder = tmp_path_factory.mktemp("mqttjs")
    for name in ("package.json", "package-lock.json", "device.mjs"):
        shutil.copy(NODE_CLIENT / name, folder / name)
    npm = Path(sys.executable).with_name("npm")
    subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder


@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_mqttjs(world: World, mqttjs: Path, scheme: str, version: str) -> None:
    device_id, token = await world.device()
    command_id = await ask(world, device_id)
    port = world.mqtt_port if scheme == "mqtt" else world.app.state.mqtt_websocket_port
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("node"),
        "device.mjs",
        cwd=mqttjs,
        env={
            **os.environ,
            "URL": f"{scheme}://127.0.0.1:{port}/mqtt",
            "DEVICE_ID": str(device_id),
            "TOKEN": token,
            "VERSION": version,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()
    assert "asked to set_speed { rpm: 900 }" in said.decode()
    await is_answered(world, device_id, command_id)
    assert await world.until_stored(device_id, 1)
