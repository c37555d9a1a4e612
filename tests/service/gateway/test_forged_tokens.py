"""Tokens that are not what they seem."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from services.gateway.domain.signing_key import SigningKey
from tests.service.gateway.conftest import Person, World

Claims = dict[str, Any]
Headers = dict[str, Any]


class Forger:
    """Makes tokens that would be good, but for one thing."""

    def __init__(self, world: World, person: Person) -> None:
        self.key: SigningKey = world.app.state.keyring.signing()
        now = datetime.now(UTC)
        self.claims: Claims = {
            "iss": "iiot-gateway",
            "aud": "iiot-api",
            "sub": str(person.user_id),
            "tenant": str(person.tenant_id),
            "session": str(uuid4()),
            "jti": str(uuid4()),
            "iat": int(now.timestamp()),
            "exp": int((now + timedelta(minutes=10)).timestamp()),
        }
        self.headers: Headers = {"kid": self.key.kid, "typ": "at+jwt"}

    def sign(self, claims: Claims | None = None, headers: Headers | None = None) -> str:
        """Sign with the gateway's own key."""
        return jwt.encode(
            {k: v for k, v in {**self.claims, **(claims or {})}.items() if v is not None},
            self.key.private,
            algorithm="ES256",
            headers={**self.headers, **(headers or {})},
        )

    def raw(self, header: Headers, signature: bytes) -> str:
        """Put a token together by hand."""
        parts = [json.dumps(header).encode(), json.dumps(self.claims).encode(), signature]
        return ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts)

    def public_pem(self) -> bytes:
        """Return the public key, as anyone can get it."""
        return self.key.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def hmac(self) -> str:
        """Sign by HMAC with the public key as the secret."""
        import hashlib
        import hmac

        header = {"alg": "HS256", **self.headers}
        unsigned = self.raw(header, b"").rstrip(".")
        digest = hmac.new(self.public_pem(), unsigned.encode(), hashlib.sha256).digest()
        return self.raw(header, digest)

    def stranger(self, **header: object) -> str:
        """Sign with a key of our own under the gateway's id."""
        return jwt.encode(
            self.claims,
            ec.generate_private_key(ec.SECP256R1()),
            algorithm="ES256",
            headers={**self.headers, **header},
        )

    def by_hand(self, payload: bytes, signature: bytes | None = None, **header: object) -> str:
        """Sign bytes that need not be JSON with the gateway's own key (or put a signature there)."""
        head = json.dumps({"alg": "ES256", **self.headers, **header}).encode()
        unsigned = f"{_text(head)}.{_text(payload)}"
        if signature is None:
            der = self.key.private.sign(unsigned.encode(), ec.ECDSA(hashes.SHA256()))
            signature = b"".join(n.to_bytes(32, "big") for n in decode_dss_signature(der))
        return f"{unsigned}.{_text(signature)}"

    def rsa(self) -> str:
        """Sign by RSA."""
        key = rsa.generate_private_key(65537, 2048)
        return jwt.encode(self.claims, key, algorithm="RS256", headers=self.headers)

    def other_curve(self) -> str:
        """Sign on P-384."""
        key = ec.generate_private_key(ec.SECP384R1())
        return jwt.encode(self.claims, key, algorithm="ES384", headers=self.headers)

    def without(self, claim: str) -> str:
        """Leave a claim out."""
        return self.sign({claim: None})

    def twice(self, claim: str, value: str) -> str:
        """Say a claim twice, the good value first."""
        text = json.dumps(self.claims)
        return self.by_hand(f'{text[:-1]}, "{claim}": "{value}"}}'.encode())

    def own_jwk(self) -> str:
        """Bring the key along in the header."""
        key = ec.generate_private_key(ec.SECP256R1())
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
        return jwt.encode(self.claims, key, algorithm="ES256", headers={**self.headers, "jwk": jwk})


def _text(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


CLAIMS = ("iss", "aud", "exp", "iat", "jti", "sub", "tenant", "session")
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve P-256."""

FORGERIES: dict[str, Callable[[Forger], str]] = {
    "alg none": lambda f: f.raw({"alg": "none", **f.headers}, b""),
    "alg None": lambda f: f.raw({"alg": "None", **f.headers}, b""),
    "no alg": lambda f: f.raw(f.headers, b"x" * 64),
    "hmac with the public key": lambda f: f.hmac(),
    "a stranger's key": lambda f: f.stranger(),
    "a key of its own": lambda f: f.own_jwk(),
    "unknown kid": lambda f: f.sign(headers={"kid": "nobody"}),
    "kid is a path": lambda f: f.sign(headers={"kid": "../../etc/passwd"}),
    "kid missing": lambda f: f.raw({"alg": "ES256", "typ": "at+jwt"}, b"x" * 64),
    "kid a number": lambda f: f.raw({"alg": "ES256", "typ": "at+jwt", "kid": 1}, b"x" * 64),
    "crit": lambda f: f.sign(headers={"crit": ["b64"], "b64": False}),
    "unknown crit": lambda f: f.sign(headers={"crit": ["mystery"], "mystery": 1}),
    "other typ": lambda f: f.sign(headers={"typ": "JWT"}),
    "a principal": lambda f: f.sign({"aud": "iiot-services"}, headers={"typ": "principal+jwt"}),
    "other audience": lambda f: f.sign({"aud": "iiot-services"}),
    "no audience": lambda f: f.sign({"aud": None}),
    "other issuer": lambda f: f.sign({"iss": "someone"}),
    "no issuer": lambda f: f.sign({"iss": None}),
    "expired": lambda f: f.sign({"exp": int(datetime.now(UTC).timestamp()) - 1}),
    "no expiry": lambda f: f.sign({"exp": None}),
    "from the future": lambda f: f.sign({"iat": int(datetime.now(UTC).timestamp()) + 300}),
    "exp infinite": lambda f: f.sign({"exp": 1e308}),
    "no session": lambda f: f.sign({"session": None}),
    "no tenant": lambda f: f.sign({"tenant": None}),
    "tenant is no id": lambda f: f.sign({"tenant": "default"}),
    "sub is no id": lambda f: f.sign({"sub": "ann"}),
    "someone else's tenant": lambda f: f.sign({"tenant": str(uuid4())}),
    "cut short": lambda f: f.sign()[:-4],
    "not a token": lambda _: "a.b.c",
    "too long": lambda f: f.sign({"more": "x" * 8000}),
    "alg NONE": lambda f: f.raw({"alg": "NONE", **f.headers}, b""),
    "alg nOnE with a signature": lambda f: f.raw({"alg": "nOnE", **f.headers}, b"x" * 64),
    "alg in small letters": lambda f: f.by_hand(json.dumps(f.claims).encode(), alg="es256"),
    "alg a list": lambda f: f.by_hand(json.dumps(f.claims).encode(), alg=["ES256"]),
    "RS256": lambda f: f.rsa(),
    "another curve": lambda f: f.other_curve(),
    "jku": lambda f: f.stranger(jku="https://evil.example/jwks.json"),
    "x5u": lambda f: f.stranger(x5u="https://evil.example/cert.pem"),
    "x5c": lambda f: f.stranger(x5c=["AAAA"]),
    "kid is SQL": lambda f: f.sign(headers={"kid": "' OR 1=1 --"}),
    "kid is an address": lambda f: f.sign(headers={"kid": "https://evil.example/key"}),
    "a refresh token": lambda _: "iiotr_" + "x" * 43,
    "a pending login's token": lambda _: "iiotm_" + "x" * 43,
    "an invitation": lambda _: "iioti_" + "x" * 43,
    "a ticket": lambda _: "iiotw_" + "x" * 43,
    "typ missing": lambda f: f.sign(headers={"typ": None}),
    "the typ of a pending login": lambda f: f.sign(headers={"typ": "mfa+jwt"}),
    "issued long from now": lambda f: f.sign({"iat": 2**39}),
    "issued before time": lambda f: f.sign({"iat": -1}),
    "expires as text": lambda f: f.sign({"exp": "never"}),
    "expires true": lambda f: f.by_hand(json.dumps({**f.claims, "exp": True}).encode()),
    "two dots more": lambda f: f.sign() + "..",
    "one part less": lambda f: f.sign().rpartition(".")[0],
    "no JSON": lambda f: f.by_hand(b"{not json"),
    "not UTF-8": lambda f: f.by_hand(b'{"sub": "\xff\xfe"}'),
    "a list": lambda f: f.by_hand(b"[]"),
    "deep": lambda f: f.by_hand(b"[" * 2000 + b"]" * 2000),
    "the audience twice": lambda f: f.twice("aud", "iiot-services"),
    "the tenant twice": lambda f: f.twice("tenant", str(uuid4())),
    "another token's signature": lambda f: (
        f.sign().rpartition(".")[0] + "." + f.sign({"jti": str(uuid4())}).rpartition(".")[2]
    ),
    "a signature of zeros": lambda f: f.by_hand(json.dumps(f.claims).encode(), bytes(64)),
    "a signature of r = s = n": lambda f: f.by_hand(
        json.dumps(f.claims).encode(), ORDER.to_bytes(32, "big") * 2
    ),
    "no signature": lambda f: f.by_hand(json.dumps(f.claims).encode(), b""),
    **{f"without {claim}": partial(Forger.without, claim=claim) for claim in CLAIMS},
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_token_opens_nothing(world: World, name: str) -> None:
    ann = world.person()
    forger = Forger(world, ann)
    assert await world.me(forger.sign()) == 200, "the forger's tools work"
    token = FORGERIES[name](forger)
    unknown = await world.http.get("/api/v1/auth/me", headers={"authorization": "Bearer a.b.c"})
    for path in ("/api/v1/auth/me", "/api/v1/devices"):
        answer = await world.http.get(path, headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 401
        # Signed by our own key, and refused for what it says: the user is no member there.
        if name not in {"someone else's tenant", "the tenant twice"}:
            assert answer.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    assert not world.service.asked


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "Bearer é"])
async def test_an_odd_credential_is_no_credential(world: World, value: str) -> None:
    answer = await world.http.get(
        "/api/v1/devices", headers=[(b"authorization", value.encode("latin-1"))]
    )
    assert answer.status_code == 401


async def test_what_is_published_has_no_private_half(world: World) -> None:
    answer = await world.http.get("/.well-known/jwks.json")
    (key,) = answer.json()["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
