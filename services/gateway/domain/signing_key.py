"""The keys that tokens are signed with, and which of them signs at a moment.

A new key is published before it signs, so that everyone who verifies has seen it; an old one is
published until the last token that it signed has expired.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ALGORITHM = "ES256"
PUBLISHED_BEFORE = timedelta(minutes=10)
PUBLISHED_AFTER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its id (the RFC 7638 thumbprint of its public half)."""

    kid: str
    private: ec.EllipticCurvePrivateKey
    created_at: datetime


def new_key(now: datetime) -> SigningKey:
    """Return a fresh key."""
    private = ec.generate_private_key(ec.SECP256R1())
    return SigningKey(_thumbprint(private.public_key()), private, now)


def to_pem(key: SigningKey, passphrase: str) -> str:
    """Return the private key as text, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    ).decode()


def from_pem(kid: str, pem: str, passphrase: str, created_at: datetime) -> SigningKey:
    """Read a key back. Raises ValueError or TypeError if the passphrase does not open it."""
    # A key kept before a passphrase was set is not encrypted, and stays readable.
    encrypted = "ENCRYPTED" in pem.partition("\n")[0]
    private = serialization.load_pem_private_key(
        pem.encode(), passphrase.encode() if passphrase and encrypted else None
    )
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")
    return SigningKey(kid, private, created_at)


def signing_key(keys: Sequence[SigningKey], now: datetime) -> SigningKey:
    """Return the key that signs now: the newest that everyone has seen, else the oldest."""
    by_age = sorted(keys, key=lambda key: key.created_at)
    seen = [key for key in by_age if key.created_at + PUBLISHED_BEFORE <= now]
    return seen[-1] if seen else by_age[0]


def needs_successor(keys: Sequence[SigningKey], *, lifetime: timedelta, now: datetime) -> bool:
    """Whether it is time for a new key."""
    return all(key.created_at + lifetime <= now for key in keys)


def superseded(keys: Sequence[SigningKey], now: datetime) -> list[SigningKey]:
    """Return the keys whose tokens have all expired: a newer one has signed for long enough."""
    signing = signing_key(keys, now)
    if signing.created_at + PUBLISHED_BEFORE + PUBLISHED_AFTER > now:
        return []
    return [key for key in keys if key.created_at < signing.created_at]


def to_jwk(key: SigningKey) -> dict[str, str]:
    """Return the public half as a JWK (RFC 7517)."""
    members = ECAlgorithm.to_jwk(key.private.public_key(), as_dict=True)
    return {
        **{name: str(value) for name, value in members.items() if name in {"kty", "crv", "x", "y"}},
        "kid": key.kid,
        "use": "sig",
        "alg": ALGORITHM,
    }


def _thumbprint(public: ec.EllipticCurvePublicKey) -> str:
    """Return the JWK thumbprint, RFC 7638: the hash of the required members in order."""
    jwk = ECAlgorithm.to_jwk(public, as_dict=True)
    canonical = "{" + ",".join(f'"{name}":"{jwk[name]}"' for name in ("crv", "kty", "x", "y")) + "}"
    return jwt.utils.base64url_encode(hashlib.sha256(canonical.encode()).digest()).decode()
