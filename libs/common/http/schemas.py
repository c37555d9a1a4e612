"""What request and response bodies are made of.

A field is described by the text below it, and shown by its `Field(examples=[...])`: both are what
integrators read in the API's description.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, WithJsonSchema


class Body(BaseModel):
    """The base of request bodies: an unknown field, a NaN or an infinity is a fault (422)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Out(BaseModel):
    """The base of response bodies; made from domain objects with `model_validate`."""

    model_config = ConfigDict(from_attributes=True, frozen=True, use_attribute_docstrings=True)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time lies outside of the calendar") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A point in time: RFC 3339 with an offset on the wire (a naive time is a fault), UTC in code."""

Duration = Annotated[
    timedelta,
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "format": "duration"}]},
        mode="validation",
    ),
]
"""How long: seconds or an ISO 8601 duration on the wire."""
