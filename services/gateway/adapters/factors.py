"""Asking tenancy about second factors, which it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx2
import msgspec

from libs.common.errors import (
    AppError,
    Conflict,
    FieldError,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthenticated,
)
from services.gateway.adapters.tenancy import Tenancy, read
from services.gateway.domain.passkey import Credential, RelyingParty

_KINDS: Mapping[int, type[AppError]] = {
    kind.status: kind for kind in (Unauthenticated, NotFound, Conflict, Invalid, TooManyRequests)
}


@dataclass(frozen=True, slots=True)
class Factor:
    """One of a user's factors."""

    id: UUID
    kind: str
    name: str
    created_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class FactorsOfUser:
    """What a user has."""

    factors: list[Factor]
    recovery_codes_left: int


@dataclass(frozen=True, slots=True)
class AppSetUp:
    """What an authenticator app takes over; shown once."""

    secret: str = field(repr=False)
    address: str = field(repr=False)
    qr_code: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AddedPasskey:
    """A passkey that was added; with the first factor also recovery codes."""

    factor: Factor
    recovery_codes: list[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Codes:
    recovery_codes: list[str]


@dataclass(frozen=True, slots=True)
class _Owner:
    user_id: UUID


class _ProblemIn(msgspec.Struct):
    detail: str
    errors: list[FieldError] = []


class Factors:
    """The part of tenancy's API that is about second factors. All raise Unavailable."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def of(self, user_id: UUID) -> FactorsOfUser:
        """Return what a user has."""
        answer = await self._ask("GET", f"users/{user_id}/factors")
        return read(answer, FactorsOfUser)

    async def begin_app(self, user_id: UUID, *, only_first: bool) -> AppSetUp:
        """Give an authenticator app its secret. Raises Conflict."""
        answer = await self._ask(
            "POST", f"users/{user_id}/factors/totp", {"only_first": only_first}
        )
        return read(answer, AppSetUp)

    async def confirm_app(self, user_id: UUID, code: str, *, only_first: bool) -> list[str]:
        """Let an app count that has shown a code; return recovery codes.

        Raises Unauthenticated, Conflict or TooManyRequests.
        """
        answer = await self._ask(
            "POST",
            f"users/{user_id}/factors/totp/confirm",
            {"code": code, "only_first": only_first},
        )
        return read(answer, _Codes).recovery_codes

    async def renew_recovery_codes(self, user_id: UUID) -> list[str]:
        """Return new recovery codes. Raises Conflict."""
        answer = await self._ask("POST", f"users/{user_id}/factors/recovery-codes")
        return read(answer, _Codes).recovery_codes

    async def check_code(self, user_id: UUID, kind: str, code: str) -> None:
        """Use a code up. Raises Unauthenticated or TooManyRequests."""
        await self._ask("POST", f"users/{user_id}/factors/check", {"kind": kind, "code": code})

    async def rename(self, user_id: UUID, factor_id: UUID, name: str) -> Factor:
        """Give a passkey another name. Raises NotFound."""
        answer = await self._ask("PATCH", f"users/{user_id}/factors/{factor_id}", {"name": name})
        return read(answer, Factor)

    async def remove(self, user_id: UUID, factor_id: UUID) -> None:
        """Take a factor away. Raises NotFound."""
        await self._ask("DELETE", f"users/{user_id}/factors/{factor_id}")

    async def begin_passkey(
        self, user_id: UUID, site: RelyingParty, challenge: str, *, only_first: bool
    ) -> dict[str, Any]:
        """Return what an authenticator makes a passkey from. Raises Conflict."""
        answer = await self._ask(
            "POST",
            f"users/{user_id}/passkeys/options",
            {**_ceremony(site, challenge), "only_first": only_first},
        )
        return read(answer, dict[str, Any])

    async def add_passkey(
        self,
        user_id: UUID,
        site: RelyingParty,
        challenge: str,
        credential: Credential,
        *,
        name: str,
        only_first: bool,
    ) -> AddedPasskey:
        """Keep the passkey that an authenticator made. Raises Unauthenticated or Conflict."""
        answer = await self._ask(
            "POST",
            f"users/{user_id}/passkeys",
            {
                **_ceremony(site, challenge),
                "credential": credential,
                "name": name,
                "only_first": only_first,
            },
        )
        return read(answer, AddedPasskey, status=201)

    async def ask_for_passkey(
        self, user_id: UUID | None, site: RelyingParty, challenge: str
    ) -> dict[str, Any]:
        """Return what a passkey proves itself by: one of the user's, or (None) anybody's."""
        answer = await self._ask(
            "POST", "passkeys/options", {**_ceremony(site, challenge), "user_id": _text(user_id)}
        )
        return read(answer, dict[str, Any])

    async def check_passkey(
        self, user_id: UUID | None, site: RelyingParty, challenge: str, credential: Credential
    ) -> UUID:
        """Return whose passkey has proved itself. Raises Unauthenticated."""
        answer = await self._ask(
            "POST",
            "passkeys/check",
            {
                **_ceremony(site, challenge),
                "user_id": _text(user_id),
                "credential": credential,
            },
        )
        return read(answer, _Owner).user_id

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx2.Response:
        """Return a good answer; raise what another one says."""
        answer = await self._tenancy.call(method, f"/internal/v1/{path}", body)
        kind = _KINDS.get(answer.status_code)
        if kind is None:
            return answer
        problem = read(answer, _ProblemIn, status=answer.status_code)
        wait = answer.headers.get("retry-after")
        raise kind(
            problem.detail, errors=problem.errors, retry_after_s=float(wait) if wait else None
        )


def _ceremony(site: RelyingParty, challenge: str) -> dict[str, object]:
    return {"rp_id": site.id, "origins": list(site.origins), "challenge": challenge}


def _text(user_id: UUID | None) -> str | None:
    return None if user_id is None else str(user_id)
