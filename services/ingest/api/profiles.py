"""Device profiles over HTTP."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Response
from pydantic import Field, field_validator, model_validator

from libs.common.errors import Conflict, Invalid, Malformed, NotFound, PreconditionFailed
from libs.common.historian.point import Kind
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.ingest.api.deps import (
    CanReadDevices,
    CanWriteForAllDevices,
    IfMatch,
    InTransaction,
    version_of,
)
from services.ingest.api.devices import Description, Name
from services.ingest.domain.profile import DeviceProfile, MetricDeclaration
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.units import is_known
from services.ingest.usecases import profiles as usecases

router = APIRouter(prefix="/api/v1/device-profiles", tags=["devices"], route_class=IdempotentRoute)

MOST_METRICS = 1_000
LONGEST_SILENCE_S = 366 * 86_400

MetricName = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]+$", examples=["temperature"])
]


class MetricIn(Body):
    """What is declared of a metric; null is undeclared."""

    kind: Literal["number", "bool", "text"] | None = None
    unit: Annotated[str, Field(min_length=1, max_length=64, examples=["degC"])] | None = None
    """What values are stored in; those in another unit of its dimension are converted."""
    minimum: float | None = None
    maximum: float | None = None
    """A number outside of minimum to maximum is stored as uncertain."""

    @field_validator("unit")
    @classmethod
    def _is_a_unit(cls, unit: str | None) -> str | None:
        if unit is not None and not is_known(unit):
            raise ValueError("no such unit is known")
        return unit

    @model_validator(mode="after")
    def _is_a_range(self) -> "MetricIn":
        if None not in (self.minimum, self.maximum) and self.minimum > self.maximum:  # type: ignore[operator]  # both are numbers here
            raise ValueError("the minimum is larger than the maximum")
        if self.kind in ("bool", "text") and (self.unit, self.minimum, self.maximum) != (
            None,
            None,
            None,
        ):
            raise ValueError("only numbers have a unit and a range")
        return self


Metrics = Annotated[dict[MetricName, MetricIn], Field(max_length=MOST_METRICS)]
Fields = Annotated[
    dict[MetricName, MetricName], Field(max_length=MOST_METRICS, examples=[{"t1": "temperature"}])
]
Silence = Annotated[int, Field(ge=1, le=LONGEST_SILENCE_S, examples=[300])]


class ProfileIn(Body):
    """A profile to make: what devices of one type have in common."""

    name: Name
    description: Description = ""
    metrics: Metrics = Field(default_factory=dict)
    protocol: Protocol | None = None
    payload_format: PayloadFormat | None = None
    fields: Fields = Field(default_factory=dict)
    """Which metric a field of the payload is, where it is named otherwise."""
    offline_after: Silence | None = None
    """After how many seconds of silence a device without a connection is offline."""


class ProfileChange(Body):
    """What is to change of a profile; what is left out stays. Null takes away."""

    name: Name | None = None
    description: Description | None = None
    metrics: Metrics | None = None
    protocol: Protocol | None = None
    payload_format: PayloadFormat | None = None
    fields: Fields | None = None
    offline_after: Silence | None = None

    @field_validator("name", "description", "metrics", "fields")
    @classmethod
    def _stays(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a profile always has one")
        return value


class MetricOut(Out):
    """What is declared of a metric."""

    kind: Literal["number", "bool", "text"] | None
    unit: Annotated[str | None, Field(examples=["degC"])]
    minimum: float | None
    maximum: float | None


class ProfileOut(Out):
    """A profile."""

    id: UUID
    name: Annotated[str, Field(examples=["Hydraulic press"])]
    description: Annotated[str, Field(examples=["Presses of the 2040 series"])]
    metrics: dict[str, MetricOut]
    protocol: Protocol | None
    payload_format: PayloadFormat | None
    fields: Annotated[dict[str, str], Field(examples=[{"t1": "temperature"}])]
    offline_after: Annotated[int | None, Field(examples=[300])]
    created_at: datetime
    updated_at: datetime
    version: int


class _Position(msgspec.Struct):
    name: str


@router.post("", status_code=201, responses=problems(Conflict, Invalid))
async def create_profile(
    body: ProfileIn, who: CanWriteForAllDevices, store: InTransaction, now: Now
) -> ProfileOut:
    """Make a profile."""
    profile = await usecases.create(
        store,
        uuid4(),
        name=body.name,
        description=body.description,
        declares=_declared(body, set(ProfileIn.model_fields)),
        at=now,
    )
    return _out(profile)


@router.get("", responses=problems(Malformed))
async def list_profiles(
    who: CanReadDevices, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[ProfileOut]:
    """List the profiles, by name."""
    after = decode_cursor(cursor, _Position).name if cursor else None
    profiles = await store.profiles.page(limit + 1, after)
    more = len(profiles) > limit
    profiles = profiles[:limit]
    return Page(
        items=[_out(profile) for profile in profiles],
        next_cursor=encode_cursor(_Position(profiles[-1].name)) if more else None,
    )


@router.get("/{profile_id}", responses=problems(NotFound))
async def get_profile(profile_id: UUID, who: CanReadDevices, store: InTransaction) -> ProfileOut:
    """Return one profile."""
    return _out(await store.profiles.get(profile_id))


@router.patch("/{profile_id}", responses=problems(NotFound, Conflict, PreconditionFailed, Invalid))
async def change_profile(
    profile_id: UUID,
    body: ProfileChange,
    who: CanWriteForAllDevices,
    store: InTransaction,
    now: Now,
    if_match: IfMatch = None,
) -> ProfileOut:
    """Change a profile. Its devices' points are taken accordingly at once."""
    given = body.model_fields_set
    profile = await usecases.update(
        store,
        profile_id,
        {name: getattr(body, name) for name in given & {"name", "description"}},
        _declared(body, given),
        version=version_of(if_match),
        at=now,
    )
    return _out(profile)


@router.delete("/{profile_id}", status_code=204, responses=problems(NotFound, Conflict))
async def remove_profile(
    profile_id: UUID, who: CanWriteForAllDevices, store: InTransaction
) -> Response:
    """Remove a profile that no device has."""
    await store.profiles.remove(profile_id)
    return Response(status_code=204)


def _declared(body: ProfileIn | ProfileChange, given: set[str]) -> dict[str, Any]:
    declared: dict[str, Any] = {
        name: getattr(body, name) for name in given & {"protocol", "payload_format", "fields"}
    }
    if "metrics" in given and body.metrics is not None:
        declared["metrics"] = {
            name: MetricDeclaration(
                kind=None if metric.kind is None else Kind[metric.kind.upper()],
                unit=metric.unit,
                minimum=metric.minimum,
                maximum=metric.maximum,
            )
            for name, metric in body.metrics.items()
        }
    if "offline_after" in given:
        silence = body.offline_after
        declared["offline_after"] = None if silence is None else timedelta(seconds=silence)
    return declared


def _out(profile: DeviceProfile) -> ProfileOut:
    declares = profile.declares
    silence = declares.offline_after
    return ProfileOut(
        id=profile.id,
        name=profile.name,
        description=profile.description,
        metrics={
            name: MetricOut(
                kind=None if metric.kind is None else metric.kind.name.lower(),
                unit=metric.unit,
                minimum=metric.minimum,
                maximum=metric.maximum,
            )
            for name, metric in declares.metrics.items()
        },
        protocol=declares.protocol,
        payload_format=declares.payload_format,
        fields=dict(declares.fields),
        offline_after=None if silence is None else round(silence.total_seconds()),
        created_at=profile.created_at,
        updated_at=profile.updated_at,
        version=declares.version,
    )
