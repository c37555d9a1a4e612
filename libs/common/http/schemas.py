"""What request and response bodies are made of."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict


class Body(BaseModel):
    """The base of request bodies: an unknown field, a NaN or an infinity is a fault (422)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Out(BaseModel):
    """The base of response bodies; made from domain objects with `model_validate`."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time lies outside of the calendar") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A point in time: RFC 3339 with an offset on the wire (a naive time is a fault), UTC in code."""
