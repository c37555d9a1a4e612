"""OpenID providers: where to send the browser, and what it brings back."""

import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, urlencode

import msgspec
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from libs.common.errors import Unauthenticated, Unavailable
from libs.common.outbound import Blocked, OutboundClient, Unreachable
from services.tenancy.domain.identity_provider import OidcSettings, Vouched

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
"""Asymmetric ones alone: with a shared secret the provider's client could sign for it."""
SKEW_S = 60
FRESH_S = 600.0
REFETCH_S = 5.0
"""A key that is not known is looked for at most this often, so that forged tokens cost little."""
REMEMBERED = 1_000


class _Discovered(msgspec.Struct):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: list[str] = msgspec.field(
        default_factory=lambda: ["client_secret_basic"]
    )
    authorization_response_iss_parameter_supported: bool = False


@dataclass(slots=True)
class _Known:
    document: _Discovered
    keys: KeySet
    read_at: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """What belongs to one login, from the browser's leaving to its return."""

    state: str
    nonce: str
    verifier: str
    redirect_uri: str


class OidcProviders:
    """Speaks with OpenID providers; remembers what they publish of themselves for ten minutes."""

    def __init__(
        self,
        client: OutboundClient,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        # A provider's tokens are judged by the machine's own clock: it has no other.
        self._wall = wall
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}

    async def begin(self, settings: OidcSettings, attempt: Attempt) -> str:
        """Return the address at the provider that the browser is sent to. Raises Unavailable."""
        known = await self._discover(settings)
        query = {
            "response_type": "code",
            "client_id": settings.client_id,
            "redirect_uri": attempt.redirect_uri,
            "scope": " ".join(settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": create_s256_code_challenge(attempt.verifier),  # type: ignore[no-untyped-call]  # left out of the stubs
            "code_challenge_method": "S256",
        }
        address = known.document.authorization_endpoint
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

    async def finish(
        self,
        settings: OidcSettings,
        secret: str,
        attempt: Attempt,
        answer: Mapping[str, str],
    ) -> Vouched:
        """Return whom the provider vouches for, by the answer that the browser brought.

        Raises Unauthenticated if it vouches for nobody or what it says is not sound, Unavailable if
        it cannot be asked now.
        """
        if "error" in answer:
            raise Unauthenticated(f"the identity provider says: {_plain(answer['error'])}")
        known = await self._discover(settings)
        # RFC 9207: an answer of another provider must not be taken for this one's.
        if answer.get("iss", known.document.issuer) != known.document.issuer or (
            known.document.authorization_response_iss_parameter_supported and "iss" not in answer
        ):
            raise Unauthenticated("the answer comes from another identity provider")
        if not answer.get("code"):
            raise Unauthenticated("the identity provider's answer has no code")
        tokens = await self._redeem(settings, secret, attempt, known.document, answer["code"])
        claims = await self._verify(settings, known, tokens, attempt.nonce)
        if "email" not in claims and known.document.userinfo_endpoint:
            claims = claims | await self._user_info(
                known.document.userinfo_endpoint, tokens, claims
            )
        return _vouched(settings, claims)

    async def _redeem(
        self,
        settings: OidcSettings,
        secret: str,
        attempt: Attempt,
        document: _Discovered,
        code: str,
    ) -> dict[str, Any]:
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": attempt.redirect_uri,
            "code_verifier": attempt.verifier,
        }
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "accept": "application/json",
        }
        if not secret or "client_secret_basic" not in (
            document.token_endpoint_auth_methods_supported
        ):
            fields |= {"client_id": settings.client_id} | (
                {"client_secret": secret} if secret else {}
            )
        else:
            headers["authorization"] = _basic(settings.client_id, secret)
        status, tokens = await self._ask(
            "POST", document.token_endpoint, headers, urlencode(fields).encode()
        )
        if status != 200 or not isinstance(tokens.get("id_token"), str):
            raise Unauthenticated(
                "the identity provider does not take the code:"
                f" {_plain(tokens.get('error', status))}"
            )
        return tokens

    async def _verify(
        self, settings: OidcSettings, known: _Known, tokens: dict[str, Any], nonce: str
    ) -> dict[str, Any]:
        refusal = Unauthenticated("the identity provider's token is not valid")
        try:
            try:
                token = jwt.decode(tokens["id_token"], known.keys, algorithms=ALGORITHMS)
            except (JoseError, ValueError):
                # Perhaps by a key that is newer than what we know.
                if self._monotonic() - known.read_at < REFETCH_S:
                    raise
                known = await self._discover(settings, fresh=True)
                token = jwt.decode(tokens["id_token"], known.keys, algorithms=ALGORITHMS)
            claims = CodeIDToken(
                token.claims,
                token.header,
                options={
                    "iss": {"essential": True, "value": known.document.issuer},
                    "aud": {"essential": True, "value": settings.client_id},
                },
                params={
                    "nonce": nonce,
                    "client_id": settings.client_id,
                    "access_token": tokens.get("access_token"),
                },
            )
            claims.validate(now=int(self._wall()), leeway=SKEW_S)
        except (JoseError, ValueError, TypeError) as error:
            raise refusal from error
        return dict(claims)

    async def _user_info(
        self, address: str, tokens: dict[str, Any], claims: dict[str, Any]
    ) -> dict[str, Any]:
        headers = {
            "authorization": f"Bearer {tokens.get('access_token', '')}",
            "accept": "application/json",
        }
        status, found = await self._ask("GET", address, headers)
        if status != 200 or found.get("sub") != claims["sub"]:
            raise Unauthenticated("the identity provider does not say who this is")
        return found

    async def _discover(self, settings: OidcSettings, *, fresh: bool = False) -> _Known:
        known = self._known.get(settings.issuer)
        now = self._monotonic()
        if known is not None and not fresh and now - known.read_at < FRESH_S:
            return known
        address = f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration"
        status, found = await self._ask("GET", address, {"accept": "application/json"})
        try:
            document = msgspec.convert(found, _Discovered)
        except msgspec.ValidationError as error:
            raise _unusable("describes itself in a way that is not understood") from error
        if status != 200 or document.issuer != settings.issuer:
            raise _unusable("calls itself otherwise than it is called here")
        status, jwks = await self._ask("GET", document.jwks_uri, {"accept": "application/json"})
        try:
            keys = KeySet.import_key_set(jwks)  # type: ignore[arg-type]  # checked by the library
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _unusable("publishes keys that are not understood") from error
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        known = self._known[settings.issuer] = _Known(document, keys, now)
        return known

    async def _ask(
        self, method: str, address: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        try:
            reply = await self._client.request(method, address, headers, body)
        except Blocked as error:
            raise _unusable(str(error)) from error
        except Unreachable as error:
            raise Unavailable(
                f"the identity provider does not answer: {error}", retry_after_s=10
            ) from error
        if not reply.whole:
            raise _unusable("answers at too great length")
        try:
            found = msgspec.json.decode(reply.body, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise _unusable(f"answers {reply.status} with something else than JSON") from error
        return reply.status, found


def _vouched(settings: OidcSettings, claims: Mapping[str, Any]) -> Vouched:
    email = claims.get("email")
    if not isinstance(email, str) or not email:
        raise Unauthenticated("the identity provider tells no email address")
    # Some say it in quotation marks; those who say nothing vouch for what they hand out themselves.
    if str(claims.get("email_verified", True)).lower() != "true":
        raise Unauthenticated("the identity provider has not verified the email address")
    groups = claims.get(settings.groups_claim) or ()
    listed = [groups] if isinstance(groups, str) else groups
    name = claims.get("name")
    return Vouched(
        subject=str(claims["sub"]),
        email=email,
        name=name if isinstance(name, str) and name else email.partition("@")[0],
        groups=frozenset(group for group in listed if isinstance(group, str)),
    )


def _basic(client_id: str, secret: str) -> str:
    # RFC 6749, section 2.3.1: both are form-encoded first.
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _unusable(why: str) -> Unavailable:
    return Unavailable(f"the identity provider cannot be used: it {why}", retry_after_s=60)


def _plain(text: object) -> str:
    """Return a foreign text as far as it may be repeated."""
    return "".join(c for c in str(text)[:100] if c.isascii() and c.isprintable())
