"""Policies over HTTP."""

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Response
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema

from libs.common.errors import Conflict, Invalid, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Page
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.retention.api.deps import CanRead, CanWrite, InTransaction, SeenVersion
from services.retention.domain.policy import LEAST_DAYS, MOST_DAYS, DataType, Policy
from services.retention.usecases import policies as usecases

router = APIRouter(
    prefix="/api/v1/retention/policies", tags=["retention"], route_class=IdempotentRoute
)

_DURATION = TypeAdapter(timedelta)


def _in_days(value: object) -> object:
    """Read a number of days, or an ISO 8601 duration of whole days."""
    if isinstance(value, str) and value.startswith("P"):
        try:
            duration = _DURATION.validate_python(value)
        except ValidationError:
            raise ValueError("is not an ISO 8601 duration") from None
        if duration % timedelta(days=1):
            raise ValueError("must be whole days")
        return duration.days
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("is a number of days, or an ISO 8601 duration such as P90D")


KeepDays = Annotated[
    int,
    Field(ge=LEAST_DAYS, le=MOST_DAYS),
    BeforeValidator(_in_days),
    WithJsonSchema(
        {
            "description": "Days, or an ISO 8601 duration of whole days.",
            "anyOf": [
                {"type": "integer", "minimum": LEAST_DAYS, "maximum": MOST_DAYS},
                {"type": "string", "format": "duration"},
            ],
            "examples": [90, "P90D"],
        }
    ),
]


class PolicyBody(Body):
    """For how long to keep a type of data."""

    data_type: DataType
    keep: KeepDays


class PolicyOut(Out):
    """For how long a type of data is kept."""

    id: UUID
    data_type: DataType
    keep: Annotated[str, Field(description="ISO 8601.", examples=["P90D"])]
    keep_days: Annotated[int, Field(examples=[90])]
    is_enforced: Annotated[
        bool, Field(description="False: the policy is kept, but nothing is erased by it yet.")
    ]
    version: int
    created_at: datetime
    updated_at: datetime


@router.get("", responses=problems())
async def list_retention_policies(who: CanRead, store: InTransaction) -> Page[PolicyOut]:
    """List the policies, at most one a type of data. Points without one are kept for the default."""
    policies = await store.policies.all()
    return Page(items=[_to_out(policy) for policy in policies], next_cursor=None)


@router.post("", status_code=201, responses=problems(Conflict, Invalid))
async def create_retention_policy(
    body: PolicyBody, who: CanWrite, store: InTransaction, now: Now
) -> PolicyOut:
    """Say for how long a type of data is kept. What is older goes with the next daily run."""
    policy = await usecases.create(store, body.data_type, body.keep, policy_id=uuid4(), now=now)
    return _to_out(policy)


@router.get("/{policy_id}", responses=problems(NotFound))
async def get_retention_policy(policy_id: UUID, who: CanRead, store: InTransaction) -> PolicyOut:
    """Return one policy."""
    return _to_out(await store.policies.get(policy_id))


@router.put("/{policy_id}", responses=problems(NotFound, PreconditionFailed, Invalid))
async def replace_retention_policy(
    policy_id: UUID,
    body: PolicyBody,
    who: CanWrite,
    store: InTransaction,
    now: Now,
    version: SeenVersion,
) -> PolicyOut:
    """Keep the data for another time. What is erased already does not come back."""
    policy = await usecases.change(
        store, policy_id, body.data_type, body.keep, version=version, now=now
    )
    return _to_out(policy)


@router.delete("/{policy_id}", status_code=204, responses=problems(NotFound, PreconditionFailed))
async def delete_retention_policy(
    policy_id: UUID, who: CanWrite, store: InTransaction, version: SeenVersion
) -> Response:
    """Delete a policy: the default holds again."""
    await usecases.delete(store, policy_id, version=version)
    return Response(status_code=204)


def _to_out(policy: Policy) -> PolicyOut:
    return PolicyOut(
        id=policy.id,
        data_type=policy.data_type,
        keep=f"P{policy.keep_days}D",
        keep_days=policy.keep_days,
        is_enforced=policy.is_enforced,
        version=policy.version,
        created_at=policy.created_at,
        updated_at=policy.updated_at,
    )
