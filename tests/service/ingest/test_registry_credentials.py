"""Credentials: rotated with overlap, of several kinds, withdrawn; and never read again."""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

from libs.common.clock import SystemClock
from libs.common.errors import Unauthenticated
from services.ingest.domain.credential import CredentialKind, fingerprint_of
from services.ingest.settings import Settings
from services.ingest.usecases.sources import Sources
from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until

KEY = "only for tests: what secrets are sealed with"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"credentials_key": SecretStr(KEY)})


def sources_of(world: World) -> Sources:
    sources: Sources = world.app.state.sources
    return sources


async def give(world: World, device_id: UUID, **asked: object) -> dict[str, str]:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/credentials", json=asked or None, headers=world.headers
    )
    assert answer.status_code == 201, answer.text
    given: dict[str, str] = answer.json()
    return given


async def send(world: World, token: str) -> int:
    answer = await world.http.post(
        "/api/v1/telemetry",
        json={"values": {"temp": 1}},
        headers={"authorization": f"Bearer {token}"},
    )
    return answer.status_code


async def test_without_overlap_the_old_token_is_void_at_once(world: World) -> None:
    device_id, old = await world.device()
    assert await send(world, old) == 202
    new = (await give(world, device_id))["token"]

    async def is_void() -> bool:
        return await send(world, old) == 401

    await until(is_void, "the old token is void", within_s=5)
    assert await send(world, new) == 202


async def test_with_overlap_both_tokens_are_good_until_it_ends(world: World) -> None:
    device_id, old = await world.device()
    assert await send(world, old) == 202
    cut: list[UUID] = []
    sources_of(world).on_revoked.append(lambda device, _: cut.append(device))
    new = (await give(world, device_id, overlap=3600))["token"]
    assert await send(world, old) == 202
    assert await send(world, new) == 202
    assert cut == []
    listed = await world.http.get(f"/api/v1/devices/{device_id}/credentials", headers=world.headers)
    first, second = listed.json()["items"]
    assert (first["expires_at"] is None, second["expires_at"]) == (False, None)
    assert old not in listed.text
    assert new not in listed.text

    # The time is over: who came in by the old one is cut, and stays out.
    clock: SystemClock = world.app.state.clock
    clock.offset = timedelta(seconds=3601)
    await world.query("UPDATE sec.clock SET shift = interval '3601 s'")
    try:
        await until(lambda: cut == [device_id], "the device is cut", within_s=5)
        assert await send(world, old) == 401
        assert await send(world, new) == 202
    finally:
        await world.query("UPDATE sec.clock SET shift = interval '0'")


async def test_that_a_credential_ends_is_found_when_the_word_of_it_was_lost(world: World) -> None:
    device_id, old = await world.device()
    source = await sources_of(world).login(old)
    await world.query(
        "UPDATE ingest.credentials SET expires_at = sec.iiot_now() WHERE device_id = $1", device_id
    )
    await sources_of(world).verify()
    assert source.is_revoked


async def test_a_withdrawn_credential_cuts_and_the_others_stay(world: World) -> None:
    device_id, old = await world.device()
    new = await give(world, device_id, overlap=3600)
    source = await sources_of(world).login(old)
    listed = await world.http.get(f"/api/v1/devices/{device_id}/credentials", headers=world.headers)
    first = listed.json()["items"][0]["id"]
    path = f"/api/v1/devices/{device_id}/credentials/{first}"
    assert (await world.http.delete(path, headers=world.headers)).status_code == 204
    await until(lambda: source.is_revoked, "the device is cut", within_s=5)
    assert (await world.http.delete(path, headers=world.headers)).status_code == 404
    with pytest.raises(Unauthenticated):
        await sources_of(world).login(old)
    assert (await sources_of(world).login(new["token"])).device_id == device_id


async def test_a_device_is_known_by_its_certificate(world: World) -> None:
    device_id, token = await world.device()
    pem = trustme.CA().issue_cert(str(device_id)).cert_chain_pems[0].bytes()
    given = await give(world, device_id, kind="certificate", certificate=pem.decode())
    certificate = x509.load_pem_x509_certificate(pem)
    shown = fingerprint_of(certificate.public_bytes(Encoding.DER))
    assert shown == certificate.fingerprint(hashes.SHA256())
    assert given["fingerprint"] == shown.hex()
    assert datetime.fromisoformat(given["expires_at"]) == certificate.not_valid_after_utc
    by_token = await sources_of(world).login(token)
    source = await sources_of(world).login_by(CredentialKind.CERTIFICATE, shown)
    assert source is by_token
    assert source.device_id == device_id
    with pytest.raises(Unauthenticated):
        await sources_of(world).login_by(CredentialKind.TOKEN, shown)


async def test_two_tenants_may_name_one_certificate_and_learn_nothing_of_each_other(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    pem = trustme.CA().issue_cert("x").cert_chain_pems[0].bytes().decode()
    mine, _ = await world.device()
    await give(world, mine, kind="certificate", certificate=pem)
    world.headers = principal_headers(uuid4())
    theirs, _ = await world.device()
    given = await give(world, theirs, kind="certificate", certificate=pem)
    shown = bytes.fromhex(given["fingerprint"])
    with pytest.raises(Unauthenticated):
        await sources_of(world).login_by(CredentialKind.CERTIFICATE, shown)
    for device_id in (mine, theirs):
        source = await sources_of(world).login_by(CredentialKind.CERTIFICATE, shown, device_id)
        assert source.device_id == device_id


@pytest.mark.parametrize("kind", ["psk", "oscore"])
async def test_a_shared_secret_is_sealed_and_opened_by_its_identity(
    world: World, kind: str
) -> None:
    device_id, _ = await world.device()
    given = await give(world, device_id, kind=kind)
    source, secret = await world.app.state.secrets.of(CredentialKind(kind), given["identity"])
    assert source.device_id == device_id
    assert secret.hex() == given["secret"]
    (row,) = await world.query(
        "SELECT * FROM ingest.credentials WHERE device_id = $1 AND kind = $2", device_id, kind
    )
    assert secret not in row["sealed"]
    with pytest.raises(Unauthenticated):
        await world.app.state.secrets.of(CredentialKind(kind), "nobody")


async def test_what_is_no_certificate_is_refused(world: World) -> None:
    device_id, _ = await world.device()
    path = f"/api/v1/devices/{device_id}/credentials"
    for asked in (
        {"kind": "certificate"},
        {"kind": "certificate", "certificate": "nonsense"},
        {"kind": "token", "certificate": "nonsense"},
        {"overlap": -1},
        {"kind": "password"},
    ):
        answer = await world.http.post(path, json=asked, headers=world.headers)
        assert answer.status_code == 422, answer.text


async def test_a_device_has_ten_credentials_at_most(world: World) -> None:
    device_id, _ = await world.device()
    for _ in range(9):
        await give(world, device_id, overlap=3600)
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/credentials", json={"overlap": 3600}, headers=world.headers
    )
    assert answer.status_code == 409
