"""Attributes: what a patch makes of them, and which are another than before."""

from typing import Any

import pytest

from libs.common.errors import Invalid
from services.ingest.domain.attribute import MOST_ATTRIBUTES, changed, merged


def test_a_patch_sets_merges_and_removes() -> None:
    before = {"old": 1, "mode": {"night": True}, "kept": [1]}
    after = merged(before, {"old": None, "mode": {"day": 2}, "new": "x"})
    assert after == {"mode": {"night": True, "day": 2}, "kept": [1], "new": "x"}
    assert changed(before, after) == ["mode", "new", "old"]


@pytest.mark.parametrize(
    ("before", "after"), [(True, 1), (0, False), ({"a": [True]}, {"a": [1]}), (1, 1.5), ("1", 1)]
)
def test_what_json_tells_apart_is_a_change(before: object, after: object) -> None:
    assert changed({"x": before}, {"x": after}) == ["x"]


def test_the_same_in_another_order_is_no_change() -> None:
    assert changed({"x": {"a": 1, "b": 2}}, {"x": {"b": 2, "a": 1}}) == []


@pytest.mark.parametrize(
    "patch",
    [
        {"x": float("nan")},
        {"x": [float("inf")]},
        {"x": "a\0b"},
        {"x": {"a\0b": 1}},
        {"x": 2**53 + 1},
        {"x": "y" * 5_000},
        {"": 1},
        {"a\nb": 1},
        {f"n{number}": number for number in range(MOST_ATTRIBUTES + 1)},
    ],
    ids=["nan", "inf", "nul", "nul-in-a-name", "inexact", "long", "nameless", "control", "many"],
)
def test_what_cannot_be_kept_is_refused(patch: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        merged({}, patch)


def test_names_that_mean_something_elsewhere_and_text_that_looks_escaped_are_kept() -> None:
    patch = {"__proto__": {"a": 1}, "constructor": 2, "pattern": r"a\u0000b"}
    assert merged({}, patch) == patch
