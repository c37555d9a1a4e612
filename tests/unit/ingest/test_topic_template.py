"""A site's own topics, read by templates."""

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.ingest.domain.topic_template import TopicTemplate, fill, names_in


@pytest.mark.parametrize(
    ("template", "topic", "values"),
    [
        ("plant/{line}/{device}", "plant/1/press", {"line": "1", "device": "press"}),
        ("plant/line-{line}/{device}", "plant/line-7/press", {"line": "7", "device": "press"}),
        ("plant/{a}.{b}/x", "plant/1.2/x", {"a": "1", "b": "2"}),
        ("plant/+/{device}", "plant/any/press", {"device": "press"}),
        ("plant/{device}/#", "plant/press/a/b", {"device": "press"}),
        ("plant/{device}/#", "plant/press", {"device": "press"}),
        ("#", "a/b", {}),
        ("plant/{device}", "plant/a b\n", {"device": "a b\n"}),
        ("plant/a.c", "plant/a.c", {}),
    ],
)
def test_a_topic_of_the_template(template: str, topic: str, values: dict[str, str]) -> None:
    assert TopicTemplate.parse(template).match(topic) == values


@pytest.mark.parametrize(
    ("template", "topic"),
    [
        ("plant/{device}", "plant"),
        ("plant/{device}", "plant/"),
        ("plant/{device}", "plant/a/b"),
        ("plant/{device}", "other/a"),
        ("plant/line-{line}/{device}", "plant/row-7/press"),
        ("plant/a.c", "plant/abc"),
        ("plant/{device}/#", "planta"),
    ],
)
def test_a_topic_of_none(template: str, topic: str) -> None:
    assert TopicTemplate.parse(template).match(topic) is None


@pytest.mark.parametrize(
    ("template", "topic_filter"),
    [
        ("plant/{line}/{device}/{metric}", "plant/+/+/+"),
        ("plant/line-{line}/#", "plant/+/#"),
        ("$share/iiot/plant/{device}", "$share/iiot/plant/+"),
    ],
)
def test_what_is_subscribed_to(template: str, topic_filter: str) -> None:
    assert TopicTemplate.parse(template).topic_filter == topic_filter


@pytest.mark.parametrize(
    "template",
    [
        "",
        "a" * 1025,
        "a\0",
        "a/{}",
        "a/{B}",
        "a/{b",
        "a/b}",
        "a/{b}/{b}",
        "a/{b}{c}",
        "a/#/b",
        "a/b#",
        "a/b+",
        "/".join("a" * 33),
    ],
)
def test_a_template_that_makes_no_sense(template: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        TopicTemplate.parse(template)


def test_an_expression_is_filled_in() -> None:
    assert fill("line {line}/{device}", {"line": "1", "device": "{line}"}) == "line 1/{line}"
    assert names_in("{line}/{device} of {plant}") == {"line", "device", "plant"}


def test_a_topic_made_to_be_slow_to_read_is_read_at_once() -> None:
    """Whoever owns the other broker writes its topics; a process reads those of many tenants."""
    names = [chr(ord("a") + n) for n in range(20)]
    template = TopicTemplate.parse("p/" + "-".join(f"{{{name}}}" for name in names) + "/x")
    began = time.process_time()
    for _ in range(100):
        assert template.match("p/" + "-" * 60_000 + "/y") is None
    assert time.process_time() - began < 1.0


def test_of_a_shared_subscription_messages_come_with_their_own_topics() -> None:
    template = TopicTemplate.parse("$share/iiot/plant/{device}")
    assert template.match("plant/press") == {"device": "press"}
    assert template.match("$share/iiot/plant/press") is None


@given(
    template=st.lists(st.sampled_from(["a", "-", ".", "{x}"]), min_size=1, max_size=7),
    topic=st.text("a-./", max_size=12),
)
def test_a_template_reads_as_its_pattern_would(template: list[str], topic: str) -> None:
    names = iter("bcdefghij")
    text = "".join(f"{{{next(names)}}}" if part == "{x}" else part for part in template)
    assume("}{" not in text)
    pattern = "".join(
        re.escape(part) if not part.startswith("{") else f"(?P<{part[1:-1]}>[^/]+?)"
        for part in re.split(r"(\{.\})", text)
    )
    expected = re.fullmatch(pattern, topic)
    assert TopicTemplate.parse(text).match(topic) == (expected.groupdict() if expected else None)
