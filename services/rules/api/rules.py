"""Rules over HTTP."""

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BeforeValidator, ConfigDict, Field

from libs.common.errors import Conflict, Invalid, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Duration, Out
from libs.common.severity import Severity
from services.rules.api.deps import CanRead, CanWrite, InTransaction
from services.rules.domain.rule import Definition, Kind, Rule
from services.rules.domain.threshold import Operator, Threshold
from services.rules.usecases import rules as usecases

router = APIRouter(prefix="/api/v1/rules", tags=["rules"], route_class=IdempotentRoute)

LONGEST_HOLD = timedelta(days=30)
LARGEST = 1e300
"""Far beyond any quantity, and small enough that a difference of two is still a number."""

Name = Annotated[
    str,
    Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$", examples=["Press too hot"]),
]
Metric = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$", examples=["temperature"])
]


def _bool_as_number(value: object) -> object:
    return float(value) if isinstance(value, bool) else value


Number = Annotated[
    float,
    Field(strict=True, ge=-LARGEST, le=LARGEST),
    # The points of a bool metric are 0 and 1.
    BeforeValidator(_bool_as_number),
]


class ConditionBody(Body):
    """When a threshold rule trips, and when it clears."""

    operator: Operator
    value: Annotated[Number, Field(examples=[90])]
    clear_value: Annotated[
        Number | None,
        Field(
            description="It clears only when this is passed too; where it trips if left out.",
            examples=[85],
        ),
    ] = None


class RuleBody(Body):
    """A rule as a person defines it."""

    name: Name
    type: Literal["threshold"]
    device_id: UUID
    metric: Metric
    condition: ConditionBody
    hold: Annotated[
        Duration,
        Field(
            alias="for",
            ge=timedelta(),
            le=LONGEST_HOLD,
            description="How long the condition must hold: seconds, or an ISO 8601 duration.",
            examples=[30, "PT5M"],
        ),
    ] = timedelta()
    severity: Severity
    enabled: Annotated[
        bool | None, Field(description="Left out: true for a new rule, else as it was.")
    ] = None

    def definition(self) -> Definition:
        """Return what the body defines."""
        condition = self.condition
        return Definition(
            name=self.name,
            kind=Kind(self.type),
            device_id=self.device_id,
            metric=self.metric,
            condition=Threshold(condition.operator, condition.value, condition.clear_value),
            hold=self.hold,
            severity=self.severity,
        )


class ConditionOut(Out):
    """When a threshold rule trips, and when it clears."""

    operator: Operator
    value: Annotated[float, Field(examples=[90])]
    clear_value: Annotated[float | None, Field(examples=[85])]


class RuleOut(Out):
    """A rule."""

    model_config = ConfigDict(populate_by_name=True)

    id: UUID
    name: Annotated[str, Field(examples=["Press too hot"])]
    type: Kind
    device_id: UUID
    metric: Annotated[str, Field(examples=["temperature"])]
    condition: ConditionOut
    hold_s: Annotated[float, Field(alias="for", description="In seconds.", examples=[30])]
    severity: Severity
    enabled: bool
    version: int
    created_at: datetime
    updated_at: datetime


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


IfMatch = Annotated[
    str | None, Header(pattern=r'^"?\d{1,9}"?$', description="The version that you saw.")
]


@router.post("", status_code=201, responses=problems(Invalid, Conflict, NotFound))
async def create_rule(
    request: Request, body: RuleBody, who: CanWrite, store: InTransaction, now: Now
) -> RuleOut:
    """Create a rule. It is evaluated with the points that arrive from now on."""
    enabled = body.enabled is not False
    rule = await usecases.create(
        store,
        body.definition(),
        rule_id=uuid4(),
        enabled=enabled,
        most=request.app.state.settings.per_tenant,
        now=now,
    )
    return _to_out(rule)


@router.get("", responses=problems(Malformed))
async def list_rules(
    who: CanRead,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    device_id: Annotated[UUID | None, Query()] = None,
) -> Page[RuleOut]:
    """List the rules, oldest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    rules = await store.rules.page(limit + 1, after, device_id)
    more = len(rules) > limit
    rules = rules[:limit]
    return Page(
        items=[_to_out(rule) for rule in rules],
        next_cursor=encode_cursor(_Position(rules[-1].created_at, rules[-1].id)) if more else None,
    )


@router.get("/{rule_id}", responses=problems(NotFound))
async def get_rule(rule_id: UUID, who: CanRead, store: InTransaction) -> RuleOut:
    """Return one rule."""
    return _to_out(await store.rules.get(rule_id))


@router.put("/{rule_id}", responses=problems(NotFound, PreconditionFailed, Invalid))
async def replace_rule(
    rule_id: UUID,
    body: RuleBody,
    who: CanWrite,
    store: InTransaction,
    now: Now,
    if_match: IfMatch = None,
) -> RuleOut:
    """Define a rule anew. A firing is cleared unless the new definition fires by the same points."""
    rule = await usecases.redefine(
        store,
        rule_id,
        body.definition(),
        enabled=body.enabled,
        version=_version(if_match),
        now=now,
    )
    return _to_out(rule)


@router.delete("/{rule_id}", status_code=204, responses=problems(NotFound, PreconditionFailed))
async def delete_rule(
    rule_id: UUID, who: CanWrite, store: InTransaction, now: Now, if_match: IfMatch = None
) -> Response:
    """Delete a rule. A firing under way is cleared."""
    await usecases.delete(store, rule_id, version=_version(if_match), now=now)
    return Response(status_code=204)


@router.post("/{rule_id}/enable", responses=problems(NotFound))
async def enable_rule(rule_id: UUID, who: CanWrite, store: InTransaction, now: Now) -> RuleOut:
    """Put a rule into force."""
    return _to_out(await usecases.enable(store, rule_id, now=now))


@router.post("/{rule_id}/disable", responses=problems(NotFound))
async def disable_rule(rule_id: UUID, who: CanWrite, store: InTransaction, now: Now) -> RuleOut:
    """Take a rule out of force. A firing under way is cleared."""
    return _to_out(await usecases.disable(store, rule_id, now=now))


def _version(if_match: str | None) -> int | None:
    return int(if_match.strip('"')) if if_match else None


def _to_out(rule: Rule) -> RuleOut:
    definition = rule.definition
    return RuleOut(
        id=rule.id,
        name=definition.name,
        type=definition.kind,
        device_id=definition.device_id,
        metric=definition.metric,
        condition=ConditionOut.model_validate(definition.condition),
        hold_s=definition.hold.total_seconds(),
        severity=definition.severity,
        enabled=rule.enabled,
        version=rule.version,
        created_at=rule.created_at,
        updated_at=rule.updated_at,
    )
