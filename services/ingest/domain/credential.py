"""What devices prove themselves with: tokens, certificates, and secrets shared beforehand."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

MOST_CREDENTIALS = 10
"""Of one device. With overlap it has two for a while; more are of different kinds."""

PSK_RANDOM_BYTES = 24
OSCORE_SECRET_BYTES = 16
OSCORE_ID_BYTES = 7
"""The longest Sender ID that OSCORE's usual algorithm takes."""


class CredentialKind(StrEnum):
    """What a credential is, and so how it is shown."""

    TOKEN = "token"  # noqa: S105 - a kind, not a token
    """256 random bits, sent as a password or bearer token."""
    CERTIFICATE = "certificate"
    """A client certificate (X.509), known by the SHA-256 of its DER form."""
    PSK = "psk"
    """A key shared beforehand, for DTLS."""
    OSCORE = "oscore"
    """A master secret shared beforehand, for CoAP's object security."""


Shown = tuple[CredentialKind, bytes]
"""A credential as it is looked for: its kind, and the SHA-256 of what was shown."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A device's credential, as far as it may be seen again. Times are UTC."""

    id: UUID
    device_id: UUID
    kind: CredentialKind
    identity: str | None
    """Under which name the secret is looked for (psk, oscore); else None."""
    fingerprint: str | None
    """Of a certificate, in hex; else None."""
    created_at: datetime
    expires_at: datetime | None
    """When it ends; None: when it is replaced or withdrawn."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A credential that a device came in by."""

    credential_id: UUID
    ends_at: datetime | None


def hash_identity(identity: str) -> bytes:
    """Return by what a shared secret is looked for."""
    return hashlib.sha256(identity.encode()).digest()


def fingerprint_of(certificate: bytes) -> bytes:
    """Return by what a certificate is looked for, given in DER."""
    return hashlib.sha256(certificate).digest()


def new_secret(kind: CredentialKind) -> tuple[str, bytes]:
    """Return a fresh identity and the secret that belongs to it."""
    if kind is CredentialKind.OSCORE:
        # Ends in a letter's worth of randomness over all installations: equal ones do not happen.
        return secrets.token_hex(OSCORE_ID_BYTES), secrets.token_bytes(OSCORE_SECRET_BYTES)
    # 32 letters: many a device and tool takes its key as text alone.
    return secrets.token_hex(16), secrets.token_urlsafe(PSK_RANDOM_BYTES).encode()
