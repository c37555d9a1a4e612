"""An OpenID provider on loopback: small, and strict in what the standard makes it check."""

import base64
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route


@dataclass(slots=True)
class _Code:
    query: dict[str, str]
    person: dict[str, Any]


@dataclass(slots=True)
class OidcProvider:
    """Lets in whoever is `person`, and signs what `change` makes of the claims."""

    client_id: str = "iiot"
    client_secret: str = "the plant's own secret"
    issuer: str = ""
    person: dict[str, Any] = field(
        default_factory=lambda: {
            "sub": "ann-7",
            "email": "ann@plant.example",
            "email_verified": True,
            "name": "Ann Weller",
            "groups": ["shift-leads", "staff"],
        }
    )
    changed_claims: dict[str, Any] = field(default_factory=dict)
    changed_discovery: dict[str, Any] = field(default_factory=dict)
    email_in_token: bool = True
    algorithm: str = "ES256"
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", auto_kid=True))
    published: list[ECKey] | None = None
    asked: list[str] = field(default_factory=list)
    _codes: dict[str, _Code] = field(default_factory=dict)
    _tokens: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def app(self) -> Starlette:
        """What serves it."""
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._discovery),
                Route("/keys", self._keys),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/userinfo", self._user_info),
            ]
        )

    async def _discovery(self, request: Request) -> Response:
        self.asked.append("discovery")
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "authorization_response_iss_parameter_supported": True,
                **self.changed_discovery,
            }
        )

    async def _keys(self, request: Request) -> Response:
        keys = [self.key] if self.published is None else self.published
        return JSONResponse(KeySet([*keys]).as_dict(private=False))

    async def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        if (
            query.get("response_type") != "code"
            or query.get("client_id") != self.client_id
            or "openid" not in query.get("scope", "").split()
            or query.get("code_challenge_method") != "S256"
            or not query.get("nonce")
        ):
            return JSONResponse({"error": "invalid_request"}, status_code=400)
        code = secrets.token_urlsafe()
        self._codes[code] = _Code(query, dict(self.person))
        answer = urlencode({"code": code, "state": query["state"], "iss": self.issuer})
        return RedirectResponse(f"{query['redirect_uri']}?{answer}")

    async def _token(self, request: Request) -> Response:
        form = {
            name: values[0] for name, values in parse_qs((await request.body()).decode()).items()
        }
        if not self._is_client(request, form):
            return JSONResponse({"error": "invalid_client"}, status_code=401)
        found = self._codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(
            hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        ).rstrip(b"=")
        if (
            found is None
            or form.get("grant_type") != "authorization_code"
            or form.get("redirect_uri") != found.query["redirect_uri"]
            or challenge.decode() != found.query["code_challenge"]
        ):
            return JSONResponse({"error": "invalid_grant"}, status_code=400)
        access_token = secrets.token_urlsafe()
        self._tokens[access_token] = found.person
        now = int(time.time())
        person = dict(found.person)
        if not self.email_in_token:
            for name in ("email", "email_verified", "name", "groups"):
                person.pop(name, None)
        claims = {
            "iss": self.issuer,
            "aud": self.client_id,
            "iat": now,
            "exp": now + 300,
            "nonce": found.query["nonce"],
            **person,
            **self.changed_claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return JSONResponse(
            {
                "access_token": access_token,
                "token_type": "Bearer",
                "id_token": jwt.encode(
                    {"alg": self.algorithm, "kid": self.key.kid}, claims, self.key
                ),
            }
        )

    async def _user_info(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        person = self._tokens.get(token)
        return JSONResponse(
            person or {"error": "invalid_token"}, status_code=200 if person else 401
        )

    def _is_client(self, request: Request, form: dict[str, str]) -> bool:
        kind, _, pair = request.headers.get("authorization", "").partition(" ")
        if kind != "Basic":
            return (
                form.get("client_id") == self.client_id
                and form.get("client_secret", "") == self.client_secret
            )
        name, _, secret = base64.b64decode(pair).decode().partition(":")
        return (unquote_plus(name), unquote_plus(secret)) == (self.client_id, self.client_secret)
