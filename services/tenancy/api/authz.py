"""Why somebody may do something, or may not."""

from typing import Annotated, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, model_validator

from libs.common.auth.principal import Kind
from libs.common.errors import Forbidden, NotFound
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import AllAccounts, InTransaction, IsOfTenant
from services.tenancy.usecases import explanations as usecases

router = APIRouter(prefix="/api/v1/authz", tags=["roles"])


class Question(Body):
    """Who, and what. Of `user_id` and `api_key_id` none is given for oneself."""

    user_id: UUID | None = None
    api_key_id: UUID | None = None
    permission: Annotated[str | None, Field(max_length=64, examples=["commands:send"])] = None
    method: Annotated[str | None, Field(max_length=10, examples=["POST"])] = None
    path: Annotated[str | None, Field(max_length=2048, examples=["/api/v1/devices"])] = None
    """Of a request: its own path, or the template of it."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.user_id is not None and self.api_key_id is not None:
            raise ValueError("ask about a user or an API key, not both")
        if (self.method is None) != (self.path is None):
            raise ValueError("an operation is a method and a path")
        if (self.permission is None) == (self.path is None):
            raise ValueError("ask about a permission, or about an operation")
        return self


class GroundOut(Out):
    """What gives a permission."""

    permission: Annotated[str, Field(examples=["commands:send"])]
    pattern: Annotated[str, Field(examples=["commands:*"])]
    role: Annotated[str | None, Field(examples=["operator"])]
    """The role that holds the pattern. Null: it is a scope of the key."""


class ExplanationOut(Out):
    """Whether somebody may, and why."""

    allowed: bool
    needs: Annotated[list[str], Field(examples=[["commands:send"]])]
    """The permissions that it takes, all of them. None: it is open to anyone."""
    grounds: list[GroundOut]
    missing: Annotated[list[str], Field(examples=[["users:write"]])]
    hindrances: Annotated[list[str], Field(examples=[["the user is disabled in this tenant"]])]
    """What stands against it whatever roles or scopes give."""
    limits: Annotated[list[str], Field(examples=[["from 192.0.2.0/24 alone"]])]
    """What is left out although they may: other devices, networks, times."""


@router.post("/explain", responses=problems(NotFound, Forbidden))
async def explain(
    body: Question, who: IsOfTenant, store: InTransaction, accounts: AllAccounts, now: Now
) -> ExplanationOut:
    """Say whether somebody may do something, and why: you, or with `users:read` a user or an API key.

    Whether a single device lies within the device groups of a limit, the devices' own part of the
    API knows: to who is limited it shows no other.
    """
    if body.permission is not None:
        needs = usecases.needs_of_permission(body.permission)
    else:
        needs = usecases.needs_of_operation(body.method or "", body.path or "")
    user_id, key_id = body.user_id, body.api_key_id
    if user_id is None and key_id is None:
        user_id, key_id = (None, who.subject) if who.kind is Kind.API_KEY else (who.subject, None)
    if key_id is not None:
        found = await usecases.of_key(store, key_id, needs, asked_by=who, now=now)
    else:
        assert user_id is not None
        found = await usecases.of_user(store, accounts, user_id, needs, asked_by=who)
    return ExplanationOut.model_validate(found)
