"""Whose certificates are trusted and what is said of their time; our own, and its files."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from services.ingest.domain.connector import State
from services.ingest.protocols.opcua import certificates, client
from services.ingest.protocols.opcua.certificates import (
    VALID,
    TrustList,
    Verdict,
    identity_at,
    new_identity,
    time_fault,
)
from services.ingest.protocols.opcua.client import Reader
from services.ingest.protocols.opcua.connection import SERVER_CERTIFICATE
from tests.unit.ingest.opcua.server import a_connector
from tests.waiting import until

MADE = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENDS = MADE + VALID
CERTIFICATE = new_identity(MADE).certificate


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (MADE - timedelta(hours=2), "not valid before 2026-03-01"),
        (MADE, None),
        (ENDS - timedelta(days=14, seconds=1), None),
        (ENDS - timedelta(days=14), f"expires on {ENDS:%Y-%m-%d}"),
        (ENDS, f"expires on {ENDS:%Y-%m-%d}"),
        (ENDS + timedelta(seconds=1), f"expired on {ENDS:%Y-%m-%d}"),
    ],
)
def test_a_certificate_s_time_is_told_two_weeks_before_it_ends(
    now: datetime, fault: str | None
) -> None:
    assert time_fault(CERTIFICATE, now) == fault


async def test_that_a_certificate_ends_is_told_while_the_connection_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "CERTIFICATES_LOOKED_AT_S", 0.001)
    reports: list[tuple[State, str]] = []

    def is_told(*told: object) -> bool:
        return reports[-1] == told

    clock = SystemClock()
    reader = Reader(
        a_connector(),
        cast(Any, SimpleNamespace(clock=clock)),
        lambda state, reason: reports.append((state, reason)),
        None,
        None,
    )
    reader._health.connected()
    watching = asyncio.create_task(reader._watch_certificates({SERVER_CERTIFICATE: CERTIFICATE}))
    try:
        for at, state, reason in (
            (ENDS - timedelta(days=1), State.DEGRADED, f"expires on {ENDS:%Y-%m-%d}"),
            (ENDS + timedelta(days=1), State.DEGRADED, f"expired on {ENDS:%Y-%m-%d}"),
            # A clock that was set back.
            (MADE, State.CONNECTED, ""),
        ):
            clock.offset = at - datetime.now(UTC)
            told = (state, f"{SERVER_CERTIFICATE}: {reason}" if reason else "")
            await until(partial(is_told, *told), f"it is told: {told}")
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


class Authority:
    """A CA of a plant's, that issues a client's certificate and may revoke it."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plant CA")])
        self.certificate = self._issue("plant CA", self._key, 1, is_authority=True)
        theirs = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.client = self._issue("press 7", theirs, 7, is_authority=False)

    def revocations(self, *serials: int) -> bytes:
        """Return the list of those that are revoked (DER)."""
        made = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        made = made.last_update(MADE).next_update(ENDS)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial)
            made = made.add_revoked_certificate(revoked.revocation_date(MADE).build())
        return made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)

    def _issue(
        self, name: str, key: rsa.RSAPrivateKey, serial: int, *, is_authority: bool
    ) -> bytes:
        made = x509.CertificateBuilder(
            self._name,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            key.public_key(),
            serial,
            MADE,
            ENDS,
        ).add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        return made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_who_is_on_a_list_of_revocations_that_is_written_over_is_out(tmp_path: Path) -> None:
    authority, trusted = Authority(), TrustList(tmp_path)
    (tmp_path / "ca.der").write_bytes(authority.certificate)
    (tmp_path / "crl").mkdir()
    revoked = tmp_path / "crl" / "plant.crl"
    revoked.write_bytes(authority.revocations())
    assert trusted.judge(authority.client, MADE) is Verdict.TRUSTED
    revoked.write_bytes(authority.revocations(7))
    assert trusted.judge(authority.client, MADE) is Verdict.UNTRUSTED


def test_our_certificate_is_made_once_and_its_key_is_ours_alone(tmp_path: Path) -> None:
    files = tmp_path / "our.pem", tmp_path / "our.key"
    made = identity_at(*files, MADE)
    assert identity_at(*files, ENDS) == made
    assert files[1].stat().st_mode & 0o077 == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["our.key", "our.pem"]


def test_a_certificate_that_was_not_made_to_its_end_is_made_for_the_key_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "our.pem", tmp_path / "our.key"
    put = certificates._put

    def fail(file: Path, content: bytes, *, mode: int) -> None:
        if file == certificate:
            raise OSError("no space left")
        put(file, content, mode=mode)

    with monkeypatch.context() as patched:
        patched.setattr(certificates, "_put", fail)
        with pytest.raises(Unavailable):
            identity_at(certificate, key, MADE)
    held = key.read_bytes()
    made = identity_at(certificate, key, MADE)
    assert made.key == held
    theirs = x509.load_der_x509_certificate(made.certificate).public_key()
    assert theirs == load_pem_private_key(held, None).public_key()


@pytest.mark.parametrize("content", [None, b"no key at all"])
def test_where_our_files_lie_is_nothing_that_a_tenant_reads(
    tmp_path: Path, content: bytes | None
) -> None:
    certificate, key = tmp_path / "our.pem", tmp_path / "our.key"
    identity_at(certificate, key, MADE)
    key.unlink()
    if content is None:
        key.mkdir()
    else:
        key.write_bytes(content)
    with pytest.raises(Unavailable) as refused:
        identity_at(certificate, key, MADE)
    assert refused.value.detail == "our certificate cannot be read"
