"""Our application's certificate, and the list of those we trust."""

import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from ipaddress import ip_address
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.common.errors import Unavailable

log = structlog.get_logger(__name__)

APPLICATION_URI = "urn:insa-iiot-platform:ingest"
"""Stands in the certificate and in what we say of ourselves; peers compare the two."""
VALID = timedelta(days=5 * 365)
ENDS_SOON = timedelta(days=14)
"""How long before a certificate expires it is said that it will."""
MOST_REJECTED = 50
"""How many certificates of strangers are kept for the operator to look at."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Our certificate (DER) and its key (PEM)."""

    certificate: bytes
    key: bytes


def identity_at(certificate: Path | None, key: Path | None, now: datetime) -> Identity:
    """Return the identity in these files (PEM), made if they are not there yet.

    Without files it is made for this process alone: peers that pin it must be told anew each time.
    Raises Unavailable if they cannot be read, or made.
    """
    if certificate is None or key is None:
        log.warning("our OPC UA certificate is made anew at each start: give it a file")
        return new_identity(now)
    try:
        if not _is_there(certificate):
            _make(certificate, key, now)
        load_pem_private_key(key.read_bytes(), None)
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        return Identity(read.public_bytes(Encoding.DER), key.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        # Tenants read the reason; the files are the operator's.
        log.error(
            "our OPC UA certificate cannot be read",
            certificate=str(certificate),
            key=str(key),
            error=str(error),
        )
        raise Unavailable("our certificate cannot be read") from error


def _make(certificate: Path, key: Path, now: datetime) -> None:
    """Make a certificate, for the key that there is, or for a new one."""
    if not _is_there(key):
        _put(key, _pem_of(_new_key()), mode=0o600)
    held = load_pem_private_key(key.read_bytes(), None)
    if not isinstance(held, rsa.RSAPrivateKey):
        raise TypeError("the key is none of RSA, as OPC UA's policies want it")
    made = new_identity(now, key=held)
    # The last: whoever finds it finds its key.
    pem = x509.load_der_x509_certificate(made.certificate).public_bytes(Encoding.PEM)
    _put(certificate, pem, mode=0o644)
    log.info("an OPC UA certificate was made", file=str(certificate))


def _is_there(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _put(file: Path, content: bytes, *, mode: int) -> None:
    """Write a file, whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=mode, exist_ok=False)
    with new.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    new.rename(file)


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _pem_of(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_identity(
    now: datetime,
    uri: str = APPLICATION_URI,
    hosts: Sequence[str] | None = None,
    key: rsa.RSAPrivateKey | None = None,
) -> Identity:
    """Return a self-signed application instance certificate, as OPC 10000-6 6.2.2 wants it.

    Without a key a new one is made for it.
    """
    key = key or _new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "INSA IIoT ingest")])
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    for host in hosts if hosts is not None else (socket.gethostname(), "localhost"):
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + VALID)
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=True,
                key_encipherment=True,
                data_encipherment=True,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return Identity(certificate.public_bytes(Encoding.DER), _pem_of(key))


def first_of(chain: bytes) -> bytes:
    """Return the first certificate of a chain: DER that says its own length."""
    return chain[: int.from_bytes(chain[2:4], "big") + 4]


def fingerprint(certificate: bytes) -> str:
    """Return a certificate's SHA-256, in lower-case hex."""
    return hashlib.sha256(certificate).hexdigest()


def names_application(certificate: bytes, uri: str | None) -> bool:
    """Whether a certificate (DER) is that of the application of this URI, as OPC 10000-4 5.7.2 asks."""
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return uri in names.get_values_for_type(x509.UniformResourceIdentifier)


def time_fault(certificate: bytes, now: datetime) -> str | None:
    """Return what is to be said of a certificate's (DER) time, with the date; None if all is well."""
    read = x509.load_der_x509_certificate(certificate)
    begins, ends = read.not_valid_before_utc, read.not_valid_after_utc
    if now < begins:
        return f"not valid before {begins:%Y-%m-%d}"
    if now > ends:
        return f"expired on {ends:%Y-%m-%d}"
    return f"expires on {ends:%Y-%m-%d}" if ends - now <= ENDS_SOON else None


class Verdict(Enum):
    """What is to be said of a certificate."""

    TRUSTED = auto()
    UNTRUSTED = auto()
    NOT_VALID_NOW = auto()
    """It would be trusted, but has expired, or its time has not come."""


class TrustList:
    """The certificates in a folder, PEM or DER: of clients, or of the CAs that issue theirs.

    What is refused is put into its subfolder `rejected`, from where an operator may move it up.
    `crl` holds what the CAs have revoked. A change of its files is seen at the next look.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: list[tuple[Path, int, int]] | None = None
        self._exact: set[bytes] = set()
        self._issuers: list[x509.Certificate] = []
        self._revoked: list[x509.CertificateRevocationList] = []

    def judge(self, der: bytes, now: datetime) -> Verdict:
        """Say whether this certificate may open a channel now; a stranger's is kept for the operator."""
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError:
            return Verdict.UNTRUSTED
        self._read()
        is_known = der in self._exact or any(
            _issued(issuer, certificate, now) for issuer in self._issuers
        )
        if is_known and not self._is_revoked(certificate):
            is_valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
            return Verdict.TRUSTED if is_valid else Verdict.NOT_VALID_NOW
        self._keep(der)
        return Verdict.UNTRUSTED

    def _read(self) -> None:
        crls = self._folder / "crl"
        files, lists = _files(self._folder), _files(crls) if crls.is_dir() else []
        # Each file, not its folder: one that is written over leaves that as it was.
        seen = [(file, (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files + lists]
        if seen == self._seen:
            return
        trusted = [c for file in files if (c := _certificate(file)) is not None]
        self._exact = {certificate.public_bytes(Encoding.DER) for certificate in trusted}
        self._issuers = [certificate for certificate in trusted if _is_issuer(certificate)]
        self._revoked = [_revocations(file) for file in lists]
        self._seen = seen

    def _is_revoked(self, certificate: x509.Certificate) -> bool:
        return any(
            revoked.issuer == certificate.issuer
            and revoked.get_revoked_certificate_by_serial_number(certificate.serial_number)
            is not None
            for revoked in self._revoked
        )

    def _keep(self, der: bytes) -> None:
        rejected = self._folder / "rejected"
        try:
            rejected.mkdir(exist_ok=True)
            file = rejected / f"{fingerprint(der)}.der"
            if not file.exists() and len(list(rejected.iterdir())) < MOST_REJECTED:
                file.write_bytes(der)
        except OSError as error:
            log.warning("a rejected certificate could not be kept", error=str(error))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def _certificate(file: Path) -> x509.Certificate | None:
    content = file.read_bytes()
    try:
        if content.startswith(b"-----"):
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except ValueError:
        log.warning("not a certificate, in the list of trusted ones", file=str(file))
        return None


def _revocations(file: Path) -> x509.CertificateRevocationList:
    content = file.read_bytes()
    if content.startswith(b"-----"):
        return x509.load_pem_x509_crl(content)
    return x509.load_der_x509_crl(content)


def _is_issuer(certificate: x509.Certificate) -> bool:
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return basic.ca


def _issued(issuer: x509.Certificate, certificate: x509.Certificate, now: datetime) -> bool:
    if not issuer.not_valid_before_utc <= now <= issuer.not_valid_after_utc:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
