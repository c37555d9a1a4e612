"""Asking tenancy who someone is."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import httpx2
import msgspec

from libs.common.auth.principal import HEADER, Kind, Principal, PrincipalSigner
from libs.common.db.engine import unbound
from libs.common.errors import FieldError, Invalid, Unauthenticated, Unavailable
from services.gateway.adapters.upstreams import Upstreams
from services.gateway.domain.account import Account, Invited, Membership

NOBODY = UUID(int=0)
ITSELF = Principal(
    subject=NOBODY,
    tenant_id=NOBODY,
    kind=Kind.SERVICE,
    permissions=frozenset({"tenancy:internal"}),
)


class _MembershipIn(msgspec.Struct):
    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    name: str
    roles: list[str]
    permissions: list[str]


class _AccountIn(msgspec.Struct):
    user_id: UUID
    email: str
    platform_admin: bool
    memberships: list[_MembershipIn]


class _ProblemIn(msgspec.Struct):
    detail: str
    errors: list[FieldError]


T = TypeVar("T")


class Tenancy:
    """The internal part of tenancy's API. `signer` vouches for the gateway itself."""

    def __init__(self, upstreams: Upstreams, signer: Callable[[], PrincipalSigner]) -> None:
        self._upstreams = upstreams
        self._signer = signer

    async def verify(self, email: str, password: str) -> Account:
        """Return who has this address and password. Raises Unauthenticated, or Unavailable."""
        answer = await self._call(
            "POST", "/internal/v1/credentials/verify", {"email": email, "password": password}
        )
        # 422: an address or a password of a shape that nobody has.
        if answer.status_code in (401, 422):
            raise Unauthenticated("the email address or the password is wrong")
        return _account(answer)

    async def invited(self, token: str) -> Invited | None:
        """Return whom this token invites; None if it is not valid, or no longer. Raises Unavailable."""
        answer = await self._call("POST", "/internal/v1/invitations/find", {"token": token})
        return None if answer.status_code in (401, 422) else _read(answer, Invited)

    async def accept(self, token: str, password: str) -> Invited:
        """Let the invited user join. Raises Invalid, Unauthenticated, or Unavailable."""
        answer = await self._call(
            "POST", "/internal/v1/invitations/accept", {"token": token, "password": password}
        )
        if answer.status_code == 422:
            problem = _read(answer, _ProblemIn, status=422)
            raise Invalid(problem.detail, errors=problem.errors)
        # 404: the tenant was removed meanwhile.
        if answer.status_code in (401, 404):
            raise Unauthenticated(
                "the invitation is not valid, or no longer, or the password is not the account's"
            )
        return _read(answer, Invited)

    async def account(self, user_id: UUID) -> Account | None:
        """Return a user who may still log in; None for anyone else. Raises Unavailable."""
        answer = await self._call("GET", f"/internal/v1/users/{user_id}")
        return None if answer.status_code == 404 else _account(answer)

    async def _call(
        self, method: str, path: str, body: dict[str, str] | None = None
    ) -> httpx2.Response:
        # Services judge a principal by the machine's own clock.
        headers = {HEADER: self._signer().sign(ITSELF, datetime.now(UTC))}
        try:
            with unbound():
                return await self._upstreams.client("tenancy").request(
                    method, path, json=body, headers=headers
                )
        except httpx2.HTTPError as error:
            raise _away() from error


def _read(answer: httpx2.Response, kind: type[T], *, status: int = 200) -> T:
    if answer.status_code != status:
        raise _away()
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError as error:
        raise _away() from error


def _account(answer: httpx2.Response) -> Account:
    found = _read(answer, _AccountIn)
    return Account(
        user_id=found.user_id,
        email=found.email,
        is_platform_admin=found.platform_admin,
        memberships=[
            Membership(
                m.tenant_id, m.tenant_slug, m.tenant_name, m.name, m.roles, frozenset(m.permissions)
            )
            for m in found.memberships
        ],
    )


def _away() -> Unavailable:
    return Unavailable("users cannot be verified now", retry_after_s=2)
