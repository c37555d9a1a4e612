"""MQTT over TLS: the certificate we show and renew, those that devices show, and who never finishes."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiomqtt
import pytest
import trustme
from aiomqtt.exceptions import MqttConnectError
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.testing import capture_logs

from libs.common.clock import SystemClock
from services.ingest.protocols.mqtt.tls import Certificate
from services.ingest.settings import Settings
from tests.service.ingest.conftest import World
from tests.waiting import until


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the server's certificate, and the devices'."""
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Path:
    """The server's certificate, key and the devices' authority, in files."""
    write(tmp_path, authority.issue_cert("127.0.0.1"))
    authority.cert_pem.write_to_path(str(tmp_path / "devices-ca.pem"))
    return tmp_path


def write(directory: Path, certificate: trustme.LeafCert) -> None:
    certificate.private_key_pem.write_to_path(str(directory / "server.key"))
    (directory / "server.pem").write_bytes(
        b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    )


@pytest.fixture
def settings(settings: Settings, files: Path) -> Settings:
    return settings.model_copy(
        update={
            "mqtt_tls_port": 0,
            "mqtt_websocket_tls_port": 0,
            "mqtt_tls_certificate": files / "server.pem",
            "mqtt_tls_key": files / "server.key",
            "mqtt_tls_client_ca": files / "devices-ca.pem",
        }
    )


def trusting(authority: trustme.CA, own: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if own is not None:
        own.configure_cert(context)
    return context


@asynccontextmanager
async def connected(
    world: World, tls: ssl.SSLContext, device_id: UUID, **options: Any
) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client(
        "127.0.0.1",
        options.pop("port", world.app.state.mqtt_tls_port),
        identifier=str(device_id),
        tls_context=tls,
        **options,
    ) as client:
        yield client


async def with_certificate(
    world: World, authority: trustme.CA
) -> tuple[UUID, trustme.LeafCert, str]:
    """Register a device with a certificate; return its id, the certificate, the credential's id."""
    device_id, _ = await world.device()
    certificate = authority.issue_cert(common_name=f"device {device_id}")
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/credentials",
        json={"kind": "certificate", "certificate": pem_of(certificate)},
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    return device_id, certificate, answer.json()["id"]


def pem_of(certificate: trustme.LeafCert) -> str:
    return certificate.cert_chain_pems[0].bytes().decode()


@pytest.mark.parametrize("port", ["mqtt_tls_port", "mqtt_websocket_tls_port"])
async def test_a_token_passes_through_tls(world: World, authority: trustme.CA, port: str) -> None:
    device_id, token = await world.device()
    options: dict[str, Any] = {"port": getattr(world.app.state, port)}
    if "websocket" in port:
        options |= {"transport": "websockets", "websocket_path": "/mqtt"}
    tls = trusting(authority)
    login = {"username": str(device_id), "password": token}
    async with connected(world, tls, device_id, **login, **options) as client:
        await client.publish(f"v1/devices/{device_id}/telemetry", '{"temp": 1}', qos=1)
    assert await world.until_stored(device_id, 1)


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
async def test_a_device_comes_in_by_its_certificate_alone(
    world: World, authority: trustme.CA, version: aiomqtt.ProtocolVersion
) -> None:
    device_id, certificate, _ = await with_certificate(world, authority)
    tls = trusting(authority, certificate)
    async with connected(world, tls, device_id, protocol=version) as client:
        await client.publish(f"v1/devices/{device_id}/telemetry", '{"temp": 1}', qos=1)
    assert await world.until_stored(device_id, 1)


async def test_a_certificate_is_for_its_own_device_alone(
    world: World, authority: trustme.CA
) -> None:
    _, certificate, _ = await with_certificate(world, authority)
    other_id, _, _ = await with_certificate(world, authority)
    stranger = authority.issue_cert(common_name="nobody")
    device_id, _ = await world.device()
    for shown, named in (
        (certificate, other_id),
        (certificate, uuid4()),
        (stranger, device_id),
    ):
        with pytest.raises(MqttConnectError):
            async with connected(world, trusting(authority, shown), named):
                pass
    with pytest.raises(MqttConnectError):
        async with connected(world, trusting(authority), device_id):
            pytest.fail("let in with nothing shown at all")


async def test_a_certificate_that_nobody_signed_or_that_has_ended_gets_no_further(
    world: World, authority: trustme.CA
) -> None:
    device_id, _, _ = await with_certificate(world, authority)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    foreign = trustme.CA().issue_cert(common_name="foreign")
    ended = authority.issue_cert(
        common_name="ended", not_before=yesterday - timedelta(days=1), not_after=yesterday
    )
    for shown in (foreign, ended):
        with capture_logs() as said, pytest.raises(aiomqtt.MqttError):
            async with connected(world, trusting(authority, shown), device_id, timeout=5):
                pass
        reasons = [line["reason"] for line in said if line["event"] == "mqtt tls handshake failed"]
        assert reasons, said
    assert "certificate has expired" in reasons[0]


async def test_a_withdrawn_certificate_cuts_its_device_off(
    world: World, authority: trustme.CA
) -> None:
    device_id, certificate, credential_id = await with_certificate(world, authority)
    tls = trusting(authority, certificate)
    async with connected(world, tls, device_id) as client:
        await client.publish(f"v1/devices/{device_id}/telemetry", '{"temp": 1}', qos=1)
        answer = await world.http.delete(
            f"/api/v1/devices/{device_id}/credentials/{credential_id}", headers=world.headers
        )
        assert answer.status_code == 204, answer.text
        await until(
            lambda: device_id not in world.app.state.endpoint.by_device, "cut off", within_s=5
        )
        with suppress(aiomqtt.MqttError):
            async for _ in client.messages:
                pass
    with pytest.raises(MqttConnectError):
        async with connected(world, tls, device_id):
            pass


async def shown_by(world: World) -> bytes:
    """Return the certificate (DER) that the server shows now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.app.state.mqtt_tls_port, ssl=context
    )
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    shown = tls.getpeercert(binary_form=True)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    assert shown is not None
    return shown


def der_of(certificate: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem_of(certificate))


async def test_a_renewed_certificate_is_shown_and_nobody_is_cut_off(
    world: World, authority: trustme.CA, files: Path
) -> None:
    device_id, token = await world.device()
    login = {"username": str(device_id), "password": token}
    async with connected(world, trusting(authority), device_id, **login) as client:
        renewed = authority.issue_cert("127.0.0.1", "renewed.example")
        write(files, renewed)

        async def is_shown() -> bool:
            return await shown_by(world) == der_of(renewed)

        await until(is_shown, "the renewed certificate is shown")
        await client.publish(f"v1/devices/{device_id}/telemetry", '{"temp": 1}', qos=1)
    assert await world.until_stored(device_id, 1)


async def test_a_certificate_that_cannot_be_used_leaves_the_old_one(
    files: Path, authority: trustme.CA
) -> None:
    certificate = Certificate(files / "server.pem", files / "server.key", None, SystemClock())
    context = certificate.context
    # As it is for a moment, when a certificate is written before its key.
    other = authority.issue_cert("127.0.0.1")
    (files / "server.pem").write_bytes(other.cert_chain_pems[0].bytes())
    await certificate.renew()
    assert certificate.context is context
    other.private_key_pem.write_to_path(str(files / "server.key"))
    await certificate.renew()
    assert certificate.context is not context


@pytest.mark.parametrize("spoilt", ["gone", "empty", "garbage", "encrypted"])
async def test_files_that_are_broken_leave_the_certificate_and_are_taken_up_when_mended(
    files: Path, authority: trustme.CA, spoilt: str
) -> None:
    certificate = Certificate(files / "server.pem", files / "server.key", None, SystemClock())
    context = certificate.context
    if spoilt == "gone":
        (files / "server.pem").unlink()
    elif spoilt == "encrypted":
        key = load_pem_private_key((files / "server.key").read_bytes(), None)
        sealed = key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")
        )
        (files / "server.key").write_bytes(sealed)
    else:
        (files / "server.pem").write_bytes(b"" if spoilt == "empty" else b"\x00garbage")
    await certificate.renew()
    assert certificate.context is context
    write(files, authority.issue_cert("127.0.0.1"))
    await certificate.renew()
    assert certificate.context is not context


async def test_a_certificate_that_has_ended_is_an_error_in_the_log_and_one_that_ends_soon_a_warning(
    files: Path, authority: trustme.CA
) -> None:
    async def said(**ends: Any) -> list[tuple[str, str]]:
        write(files, authority.issue_cert("127.0.0.1", **ends))
        certificate = Certificate(files / "server.pem", files / "server.key", None, SystemClock())
        with capture_logs() as lines:
            await certificate.renew()
        return [(line["log_level"], line["event"]) for line in lines]

    now = datetime.now(UTC)
    assert await said(not_after=now + timedelta(days=60)) == []
    assert await said(not_after=now + timedelta(days=3)) == [
        ("warning", "the certificate ends soon")
    ]
    assert await said(not_before=now - timedelta(days=3), not_after=now - timedelta(days=1)) == [
        ("error", "the certificate has ended: no device that checks it comes in")
    ]


async def test_who_never_finishes_the_handshake_is_a_stranger_until_its_time_is_over(
    world: World,
) -> None:
    endpoint = world.app.state.endpoint
    reader, writer = await asyncio.open_connection("127.0.0.1", world.app.state.mqtt_tls_port)
    writer.write(b"\x16\x03\x01")
    await until(lambda: len(endpoint.admission.strangers) == 1, "counted as a stranger")
    assert await asyncio.wait_for(reader.read(), 15) == b""
    writer.close()
    await until(lambda: not endpoint.admission.strangers, "forgotten")
    assert not endpoint.connections


async def test_plain_mqtt_on_the_port_with_tls_is_not_answered(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.app.state.mqtt_tls_port)
    writer.write(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
    said = await asyncio.wait_for(reader.read(), 15)
    assert not said.startswith(b"\x20"), "no CONNACK in the clear"
    writer.close()
    await until(lambda: not world.app.state.endpoint.connections, "forgotten")
