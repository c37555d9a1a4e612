"""Asking tenancy who someone is."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, TypeVar
from uuid import UUID

import httpx2
import msgspec

from libs.common.auth.permission import CLIENT_ADDRESS
from libs.common.auth.principal import HEADER, Kind, Principal, PrincipalSigner
from libs.common.db.acting import actor_now
from libs.common.db.engine import unbound
from libs.common.errors import (
    AppError,
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from libs.common.quotas.store import Lease
from services.gateway.adapters.upstreams import Upstreams
from services.gateway.domain.account import Account, Invited, Membership, PasswordPolicy
from services.gateway.domain.api_key import ApiKey, Use

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
    device_groups: list[UUID] | None  # no default: an answer without it must not open everything
    tenant_plan: str | None = None
    second_factor_required: bool = False


class _AccountIn(msgspec.Struct):
    user_id: UUID
    email: str
    platform_admin: bool
    memberships: list[_MembershipIn]
    factors: list[str] = []


class _ApiKeyIn(msgspec.Struct):
    tenant_id: UUID
    key_id: UUID
    scopes: list[str]
    allowed_networks: list[str]
    device_groups: list[UUID] | None
    good_until: datetime | None
    tenant_plan: str | None = None


class _RefusalIn(msgspec.Struct):
    detail: str


class _FamiliarIn(msgspec.Struct):
    is_familiar: bool


class _AddressIn(msgspec.Struct):
    email: str


class _ProblemIn(msgspec.Struct):
    detail: str
    errors: list[FieldError]


T = TypeVar("T")

_KINDS: Mapping[int, type[AppError]] = {
    kind.status: kind for kind in (Unauthenticated, NotFound, Conflict, Invalid, Unavailable)
}


class Tenancy:
    """The internal part of tenancy's API. `signer` vouches for the gateway itself."""

    def __init__(self, upstreams: Upstreams, signer: Callable[[], PrincipalSigner]) -> None:
        self._upstreams = upstreams
        self._signer = signer

    async def verify(self, email: str, password: str) -> Account:
        """Return who has this address and password. Raises Unauthenticated, or Unavailable."""
        answer = await self.call(
            "POST", "/internal/v1/credentials/verify", {"email": email, "password": password}
        )
        # 422: an address or a password of a shape that nobody has.
        if answer.status_code in (401, 422):
            raise Unauthenticated("the email address or the password is wrong")
        return _account(answer)

    async def invited(self, token: str) -> Invited | None:
        """Return whom this token invites; None if it is not valid, or no longer. Raises Unavailable."""
        answer = await self.call("POST", "/internal/v1/invitations/find", {"token": token})
        return None if answer.status_code in (401, 422) else read(answer, Invited)

    async def accept(self, token: str, password: str) -> Invited:
        """Let the invited user join. Raises Invalid, Unauthenticated, or Unavailable."""
        answer = await self.call(
            "POST", "/internal/v1/invitations/accept", {"token": token, "password": password}
        )
        if answer.status_code == 422:
            raise _invalid(answer)
        if answer.status_code == 403:
            raise Forbidden(read(answer, _RefusalIn, status=403).detail)
        # 404: the tenant was removed meanwhile.
        if answer.status_code in (401, 404):
            raise Unauthenticated(
                "the invitation is not valid, or no longer, or the password is not the account's"
            )
        return read(answer, Invited)

    async def account(self, user_id: UUID) -> Account | None:
        """Return a user who may still log in; None for anyone else. Raises Unavailable."""
        answer = await self.call("GET", f"/internal/v1/users/{user_id}")
        return None if answer.status_code == 404 else _account(answer)

    async def api_key(self, key_hash: bytes) -> ApiKey | None:
        """Return the API key with this hash, if it is good; None for any other. Raises Unavailable."""
        answer = await self.call("POST", "/internal/v1/api-keys/find", {"hash": key_hash.hex()})
        if answer.status_code == 404:
            return None
        found = read(answer, _ApiKeyIn)
        return ApiKey(
            key_id=found.key_id,
            tenant_id=found.tenant_id,
            scopes=frozenset(found.scopes),
            allowed_networks=tuple(ip_network(network) for network in found.allowed_networks),
            device_groups=None if found.device_groups is None else frozenset(found.device_groups),
            good_until=found.good_until,
            tenant_plan=found.tenant_plan,
        )

    async def note_key_uses(self, uses: Sequence[Use]) -> None:
        """Take down when API keys were used last. Raises Unavailable."""
        body = {"uses": [msgspec.to_builtins(use) for use in uses]}
        answer = await self.call("POST", "/internal/v1/api-keys/uses", body)
        if answer.status_code != 204:
            raise _away()

    async def lease_api_calls(self, tenant_id: UUID, wanted: int) -> Lease:
        """Ask for some of the calls that a tenant may make today. Raises Unavailable."""
        body = {"tenant_id": str(tenant_id), "wanted": wanted}
        return read(await self.call("POST", "/internal/v1/api-calls/lease", body), Lease)

    async def verify_registration(self, token: str, password: str) -> Invited:
        """Let who registered join. Raises Unauthenticated, Conflict if there is no room, or Unavailable."""
        answer = await self.call(
            "POST", "/internal/v1/registrations/verify", {"token": token, "password": password}
        )
        if answer.status_code == 409:
            # The tenant has no room for another user.
            raise Conflict(read(answer, _RefusalIn, status=409).detail)
        # 404: the tenant was removed meanwhile.
        if answer.status_code in (401, 404, 422):
            raise Unauthenticated(
                "the link is not valid, or no longer, or the password is another one"
            )
        return read(answer, Invited)

    async def register(self, tenant: str, email: str, password: str, name: str) -> None:
        """Take what somebody registers with. Raises Invalid, or Unavailable."""
        body = {"tenant": tenant, "email": email, "password": password, "name": name}
        _check(await self.call("POST", "/internal/v1/registrations", body), 202)

    async def forget_password(self, email: str) -> None:
        """Take that somebody forgot a password. Raises Invalid, or Unavailable."""
        _check(await self.call("POST", "/internal/v1/passwords/forgotten", {"email": email}), 202)

    async def reset_password(self, token: str, password: str) -> str:
        """Give a user the password they choose; return their address.

        Raises Unauthenticated for a token that is not good, Invalid for the password, or Unavailable.
        """
        answer = await self.call(
            "POST", "/internal/v1/passwords/reset", {"token": token, "password": password}
        )
        if answer.status_code in (401, 404):
            raise Unauthenticated("the link is not valid, or no longer")
        _check(answer, 200)
        return read(answer, _AddressIn).email

    async def change_password(
        self, user_id: UUID, *, current: str, new: str, session_id: UUID
    ) -> None:
        """Give a user another password.

        Raises Unauthenticated if the current one is another, Invalid for the new one, or Unavailable.
        """
        body = {"current": current, "new": new, "session_id": str(session_id)}
        answer = await self.call("POST", f"/internal/v1/users/{user_id}/password", body)
        if answer.status_code in (401, 404):
            raise Unauthenticated("the current password is another one")
        _check(answer, 204)

    async def ask_to_confirm(self, user_id: UUID, tenant_id: UUID) -> None:
        """Let a user be sent a link that confirms their address. Raises Unavailable."""
        path = f"/internal/v1/users/{user_id}/confirmation"
        _check(await self.call("POST", path, {"tenant_id": str(tenant_id)}), 202)

    async def confirm_address(self, user_id: UUID, tenant_id: UUID, token: str) -> None:
        """Note that a user reads what is sent to their address. Raises Unauthenticated, or Unavailable."""
        answer = await self.call(
            "POST",
            f"/internal/v1/users/{user_id}/confirm",
            {"tenant_id": str(tenant_id), "token": token},
        )
        if answer.status_code == 401:
            raise Unauthenticated("the link is not valid, or no longer, or not yours")
        _check(answer, 204)

    async def rename(self, user_id: UUID, tenant_id: UUID, name: str) -> None:
        """Let a user be called as they wish. Raises Invalid, NotFound, or Unavailable."""
        answer = await self.call(
            "PATCH",
            f"/internal/v1/users/{user_id}",
            {"tenant_id": str(tenant_id), "name": name},
        )
        if answer.status_code == 404:
            raise NotFound("the user may not enter this tenant any more")
        _check(answer, 204)

    async def password_policy(self) -> PasswordPolicy:
        """Return what is asked of a new password. Raises Unavailable."""
        return read(await self.call("GET", "/internal/v1/password-policy"), PasswordPolicy)

    async def is_familiar(self, email: str, origin: str) -> bool:
        """Whether the account was logged in to from there, lately. Raises Unavailable."""
        answer = await self.call(
            "POST", "/internal/v1/origins/find", {"email": email, "origin": origin}
        )
        return read(answer, _FamiliarIn).is_familiar

    async def note_familiar(self, email: str, origin: str) -> None:
        """Note that the account was logged in to from there. Raises Unavailable."""
        answer = await self.call(
            "POST", "/internal/v1/origins/note", {"email": email, "origin": origin}
        )
        _check(answer, 204)

    async def ask(self, path: str, body: Mapping[str, Any], kind: type[T]) -> T:
        """Return what tenancy answers to a POST; raise what it says otherwise, or Unavailable."""
        answer = await self.call("POST", f"/internal/v1/{path}", body)
        error = _KINDS.get(answer.status_code)
        if error is not None:
            problem = read(answer, _ProblemIn, status=answer.status_code)
            wait = answer.headers.get("retry-after")
            raise error(
                problem.detail, errors=problem.errors, retry_after_s=float(wait) if wait else None
            )
        return read(answer, kind)

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx2.Response:
        """Return what tenancy answers. Raises Unavailable if it is away."""
        # Services judge a principal by the machine's own clock.
        headers = {HEADER: self._signer().sign(ITSELF, datetime.now(UTC)), **_on_behalf_of()}
        try:
            with unbound():
                return await self._upstreams.client("tenancy").request(
                    method, path, json=body, headers=headers
                )
        except httpx2.HTTPError as error:
            raise _away() from error


def read(answer: httpx2.Response, kind: type[T], *, status: int = 200) -> T:
    """Return what an answer says. Raises Unavailable if it is another than the one expected."""
    if answer.status_code != status:
        raise _away()
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError as error:
        raise _away() from error


def _check(answer: httpx2.Response, status: int) -> None:
    """Raise Invalid as the answer says, or Unavailable if it is not the one that is expected."""
    if answer.status_code == 422:
        raise _invalid(answer)
    if answer.status_code != status:
        raise _away()


def _invalid(answer: httpx2.Response) -> Invalid:
    problem = read(answer, _ProblemIn, status=422)
    return Invalid(problem.detail, errors=problem.errors)


def _account(answer: httpx2.Response) -> Account:
    found = read(answer, _AccountIn)
    return Account(
        user_id=found.user_id,
        email=found.email,
        is_platform_admin=found.platform_admin,
        memberships=[
            Membership(
                m.tenant_id,
                m.tenant_slug,
                m.tenant_name,
                m.name,
                m.roles,
                frozenset(m.permissions),
                m.tenant_plan,
                None if m.device_groups is None else frozenset(m.device_groups),
                m.second_factor_required,
            )
            for m in found.memberships
        ],
        factors=found.factors,
    )


def _on_behalf_of() -> dict[str, str]:
    """Return the headers that say where the request came from that we ask for."""
    actor = actor_now()
    said = {
        CLIENT_ADDRESS: actor.address,
        "user-agent": actor.user_agent,
        "x-request-id": actor.request_id,
    }
    return {name: value for name, value in said.items() if value is not None}


def _away() -> Unavailable:
    return Unavailable("users cannot be verified now", retry_after_s=2)
