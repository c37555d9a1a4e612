"""Who the services believe: the gateway's key, and nobody who merely knows how its tokens look."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import APIRouter, Depends

from libs.common.auth.permission import Permission
from libs.common.auth.principal import (
    ALGORITHM,
    AUDIENCE,
    HEADER,
    ISSUER,
    LEEWAY_S,
    LIFETIME,
    TOKEN_TYPE,
    Principal,
    PrincipalSigner,
    PrincipalVerifier,
    StaticKeys,
)
from libs.common.errors import Unauthenticated
from libs.common.http.access import UndeclaredAccess
from libs.common.http.app import create_app

KID = "2026-11"
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC_PEM = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
SUBJECT, TENANT = uuid4(), uuid4()


def verifier() -> PrincipalVerifier:
    """Return what a service verifies with."""
    return PrincipalVerifier(StaticKeys({KID: KEY.public_key()}))


def claims(**changes: object) -> dict[str, object]:
    """Return the claims of a sound token, with changes; None leaves a claim out."""
    now = int(datetime.now(UTC).timestamp())
    sound: dict[str, object] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + int(LIFETIME.total_seconds()),
        "principal": {
            "subject": str(SUBJECT),
            "tenant_id": str(TENANT),
            "permissions": ["devices:read"],
        },
    }
    return {name: value for name, value in (sound | changes).items() if value is not None}


def token(
    body: dict[str, object] | None = None,
    *,
    key: Any = KEY,
    algorithm: str = ALGORITHM,
    **header: object,
) -> str:
    """Sign a token; the header's fields may be changed, and None leaves one out."""
    fields = {"kid": KID, "typ": TOKEN_TYPE} | header
    headers = {name: value for name, value in fields.items() if value is not None}
    return jwt.encode(body or claims(), key, algorithm=algorithm, headers=headers)


def part(content: object) -> str:
    """Encode a part of a token."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def mac(secret: bytes, **header: object) -> str:
    """Sign a token by hand with HS256, as libraries refuse to with a public key for a secret."""
    signed = f"{part({'alg': 'HS256', 'kid': KID, 'typ': TOKEN_TYPE} | header)}.{part(claims())}"
    sum_ = hmac.HMAC(secret, hashes.SHA256())
    sum_.update(signed.encode())
    return f"{signed}.{part(sum_.finalize())}"


def later(seconds: float) -> int:
    """Return a time as tokens say it."""
    return int((datetime.now(UTC) + timedelta(seconds=seconds)).timestamp())


def with_body(change: dict[str, object]) -> str:
    """Return a sound token whose body was exchanged afterwards."""
    head, _, signature = token().split(".")
    return f"{head}.{part(claims(**change))}.{signature}"


def headless(alg: str) -> str:
    """Return a token that says it needs no signature."""
    return f"{part({'alg': alg, 'kid': KID, 'typ': TOKEN_TYPE})}.{part(claims())}."


POINT = KEY.public_key().public_bytes(
    serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
)
DER = KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
SPOOFED: dict[str, object] = {
    "principal": {"subject": str(SUBJECT), "tenant_id": str(uuid4()), "permissions": ["*"]}
}

FORGED: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "garbage": lambda: "not a token",
    "garbage in three parts": lambda: "a.b.c",
    "algorithm none": lambda: headless("none"),
    "algorithm None, spelt otherwise": lambda: headless("nOnE"),
    "HS256 with the public key as PEM": lambda: mac(PUBLIC_PEM),
    "HS256 with the public key as DER": lambda: mac(DER),
    "HS256 with the public point": lambda: mac(POINT),
    "HS256 with no secret": lambda: mac(b""),
    "another key under the known id": lambda: token(key=OTHER_KEY),
    "another key under its own id": lambda: token(key=OTHER_KEY, kid="mine"),
    "another key that the header brings": lambda: token(
        key=OTHER_KEY,
        jwk=json.loads(jwt.algorithms.ECAlgorithm.to_jwk(OTHER_KEY.public_key())),
    ),
    "a key from an address": lambda: token(key=OTHER_KEY, jku="http://127.0.0.1/jwks.json"),
    "an RSA key": lambda: token(key=RSA_KEY, algorithm="RS256"),
    "another curve's algorithm": lambda: token(
        key=ec.generate_private_key(ec.SECP384R1()), algorithm="ES384"
    ),
    "no key id": lambda: token(kid=None),
    "a key id that is a path": lambda: token(kid="../../../../dev/null"),
    "a key id that is SQL": lambda: token(kid="' OR 1=1 --"),
    "another type": lambda: token(typ="JWT"),
    "no type": lambda: token(typ=None),
    "a critical extension": lambda: token(crit=["exp"]),
    "a critical extension nobody knows": lambda: token(crit=["urn:x"]),
    "another issuer": lambda: token(claims(iss="someone")),
    "no issuer": lambda: token(claims(iss=None)),
    "another audience": lambda: token(claims(aud="console")),
    "no audience": lambda: token(claims(aud=None)),
    "expired": lambda: token(claims(iat=later(-120), exp=later(-LEEWAY_S - 1))),
    "no end": lambda: token(claims(exp=None)),
    "an end that is no time": lambda: token(claims(exp="tomorrow")),
    "no beginning": lambda: token(claims(iat=None)),
    "issued in the future": lambda: token(claims(iat=later(300), exp=later(360))),
    "not yet": lambda: token(claims(nbf=later(300))),
    "no principal": lambda: token(claims(principal=None)),
    "a principal without a tenant": lambda: token(claims(principal={"subject": str(SUBJECT)})),
    "a principal that is a name": lambda: token(claims(principal="root")),
    "another body under the signature": lambda: with_body(SPOOFED),
    "cut short": lambda: token()[:-4],
    "without its signature": lambda: token().rpartition(".")[0] + ".",
    "a signature of zeroes": lambda: token().rpartition(".")[0] + "." + part(bytes(64)),
    "a list for a body": lambda: jwt.api_jws.encode(
        b"[]", KEY, algorithm=ALGORITHM, headers={"kid": KID, "typ": TOKEN_TYPE}
    ),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
async def test_a_forged_token_is_refused(forge: Callable[[], str]) -> None:
    with pytest.raises(Unauthenticated):
        await verifier().verify(forge())


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
async def test_a_forged_token_is_answered_401(forge: Callable[[], str]) -> None:
    router = APIRouter()

    @router.get("/things", dependencies=[Depends(Permission("devices:read"))])
    async def list_things() -> list[str]:
        return []

    app = create_app("things", version="1", routers=[router])
    app.state.verifier = verifier()
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://things") as http:
        assert (await http.get("/things", headers={HEADER: token()})).status_code == 200
        assert (await http.get("/things", headers={HEADER: forge()})).status_code == 401
        # Nor does it help to have been here before with the real one.
        assert (await http.get("/things", headers={HEADER: forge()})).status_code == 401


async def test_the_gateways_token_says_who_asks() -> None:
    principal = Principal(
        subject=SUBJECT,
        tenant_id=TENANT,
        permissions=frozenset({"devices:read", "alerts:*"}),
        session_id=uuid4(),
    )
    signed = PrincipalSigner(KEY, KID).sign(principal, datetime.now(UTC))
    assert await verifier().verify(signed) == principal


async def test_a_token_is_forgotten_when_it_expires() -> None:
    wall = [datetime.now(UTC).timestamp()]
    services = PrincipalVerifier(StaticKeys({KID: KEY.public_key()}), lambda: wall[0])
    short = token(claims(iat=later(-50), exp=later(0)))  # within the leeway
    await services.verify(short)
    wall[0] += LEEWAY_S + 2
    # It is looked at again, and PyJWT's own clock has not moved: take its key away as well.
    services._keys = StaticKeys({})  # what was verified once must not be believed for ever
    with pytest.raises(Unauthenticated):
        await services.verify(short)


@pytest.mark.parametrize(
    ("held", "wanted", "may"),
    [
        ("devices:read", "devices:read", True),
        ("devices:read", "devices:write", False),
        ("devices:read", "alerts:read", False),
        ("devices:*", "devices:write", True),
        ("devices:*", "devices-x:write", False),
        ("*:read", "alerts:read", True),
        ("*:read", "alerts:write", False),
        ("*", "alerts:write", True),
        ("*:*", "alerts:write", False),
        ("alerts", "alerts:read", False),
        ("alerts:", "alerts:read", False),
        (":read", "alerts:read", False),
        ("ALERTS:READ", "alerts:read", False),
        ("alerts:re*", "alerts:read", False),
        ("", "alerts:read", False),
    ],
)
def test_a_principal_may_what_its_patterns_hold(held: str, wanted: str, may: bool) -> None:
    principal = Principal(subject=SUBJECT, tenant_id=TENANT, permissions=frozenset({held}))
    assert principal.may(wanted) is may


def test_a_principal_without_permissions_may_nothing() -> None:
    assert not Principal(subject=SUBJECT, tenant_id=TENANT).may("devices:read")


def test_being_the_platforms_admin_is_no_permission_in_a_tenant() -> None:
    admin = Principal(subject=SUBJECT, tenant_id=TENANT, platform_admin=True)
    assert not admin.may("devices:read")


@pytest.mark.parametrize("permission", ["", "devices", "devices:", ":read", "devices:*", "*"])
def test_a_route_cannot_ask_for_a_permission_that_is_none(permission: str) -> None:
    with pytest.raises(ValueError, match="a permission reads"):
        Permission(permission)


def test_a_service_with_an_undeclared_route_does_not_start() -> None:
    router = APIRouter()

    @router.get("/things")
    async def list_things() -> list[str]:
        return []

    with pytest.raises(UndeclaredAccess, match="/things"):
        create_app("things", version="1", routers=[router])
