"""Examples are put together from what fields say of themselves."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import pytest
from pydantic import Field

from libs.common.http.examples import Examples, NoExample
from libs.common.http.schemas import Body, Duration, Out


class Place(Out):
    hall: Annotated[str, Field(examples=["hall 3"])]


class Press(Out):
    id: UUID
    name: Annotated[str, Field(examples=["press-7"])]
    state: Literal["on", "off"]
    seen_at: datetime
    places: list[Place]
    strokes: Annotated[int, Field(ge=5)]
    serial: str | None


class PressIn(Body):
    name: Annotated[str, Field(examples=["press-7"])]
    serial: str | None = None
    rest: Duration = Field(examples=["PT30S"])


class Nameless(Body):
    name: str


def example(model: type[Out] | type[Body]) -> object:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return Examples(schema.pop("$defs", {})).of(schema)


def test_an_example_reads_like_the_plant_and_fits_its_model() -> None:
    shown = example(Press)
    assert shown == {
        "id": "5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10",
        "name": "press-7",
        "state": "on",
        "seen_at": "2026-11-21T12:00:00Z",
        "places": [{"hall": "hall 3"}],
        "strokes": 5,
        "serial": None,
    }
    Press.model_validate(shown)


def test_what_may_be_left_out_and_is_nothing_is_left_out() -> None:
    assert example(PressIn) == {"name": "press-7", "rest": "PT30S"}


def test_a_text_of_which_nobody_shows_one_has_no_example() -> None:
    with pytest.raises(NoExample, match=r"\.name needs an example"):
        example(Nameless)
