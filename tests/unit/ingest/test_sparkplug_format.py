"""An edge node is born, speaks by alias, loses messages, and dies."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Invalid, Malformed, Unavailable
from libs.common.historian.point import Kind, Quality
from services.ingest.domain.payload import Point, Window, as_us
from services.ingest.domain.sparkplug import (
    MOST_METRICS,
    Action,
    AskRebirth,
    Gap,
    Offline,
    Online,
    Points,
    SparkplugNode,
    parse_topic,
    rebirth_command,
)
from services.ingest.domain.sparkplug_payload import Payload, decode_sparkplug, parse

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW_MS = as_us(NOW) // 1000
WINDOW = Window.around(NOW, past=timedelta(days=365), ahead=timedelta(minutes=5))
INT16, UINT64, FLOAT, DOUBLE, BOOLEAN, STRING, DATASET = 2, 8, 9, 10, 11, 12, 16


def payload(*metrics: dict[str, Any], seq: int | None = None) -> bytes:
    message = Payload(timestamp=NOW_MS)
    if seq is not None:
        message.seq = seq
    for metric in metrics:
        properties = metric.pop("properties", {})
        added = message.metrics.add(**metric)
        for key, value in properties.items():
            added.properties.keys.append(key)
            field = "string_value" if isinstance(value, str) else "int_value"
            added.properties.values.add(**{field: value})
    encoded: bytes = message.SerializeToString()
    return encoded


def bd_seq(number: int) -> dict[str, Any]:
    return {"name": "bdSeq", "datatype": UINT64, "long_value": number}


TEMP = {
    "name": "temp",
    "alias": 1,
    "datatype": DOUBLE,
    "double_value": 20.0,
    "properties": {"engUnit": "degC"},
}
LEVEL = {"name": "level", "alias": 2, "datatype": INT16, "int_value": 7}


class Edge:
    """Edge node `press` of group `plant`, as the host hears it."""

    def __init__(self) -> None:
        self.node = SparkplugNode("plant", "press")
        self.now = NOW

    def says(self, kind: str, *metrics: dict[str, Any], seq: int | None = None) -> list[Action]:
        kind, _, device = kind.partition(" ")
        topic = f"spBv1.0/plant/{kind}/press" + (f"/{device}" if device else "")
        copies = [{**metric} for metric in metrics]
        return self.node.take(topic, payload(*copies, seq=seq), self.now, WINDOW)

    def is_born(self) -> list[Action]:
        return self.says("NBIRTH", bd_seq(3), TEMP, LEVEL, seq=0)


@pytest.fixture
def edge() -> Edge:
    return Edge()


def points(actions: list[Action]) -> list[Point]:
    return [p for action in actions if isinstance(action, Points) for p in action.decoded.points]


def others(actions: list[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, Points)]


def test_a_birth_says_that_the_node_is_there_and_what_it_measures(edge: Edge) -> None:
    actions = edge.is_born()
    assert others(actions) == [Online("plant/press")]
    assert points(actions) == [
        Point("temp", NOW_MS * 1000, Kind.NUMBER, 20.0, unit="degC"),
        Point("level", NOW_MS * 1000, Kind.NUMBER, 7.0),
    ]


def test_changes_come_by_alias_with_the_names_types_and_units_of_the_birth(edge: Edge) -> None:
    edge.is_born()
    actions = edge.says(
        "NDATA",
        {"alias": 1, "double_value": 21.5, "timestamp": NOW_MS - 5},
        {"alias": 2, "int_value": 0xFFFE},
        seq=1,
    )
    assert others(actions) == []
    assert points(actions) == [
        Point("temp", (NOW_MS - 5) * 1000, Kind.NUMBER, 21.5, unit="degC"),
        Point("level", NOW_MS * 1000, Kind.NUMBER, -2.0),
    ]


def test_devices_of_a_node_have_births_and_aliases_of_their_own(edge: Edge) -> None:
    edge.is_born()
    belt = {"name": "on", "alias": 9, "datatype": BOOLEAN, "boolean_value": True}
    assert others(edge.says("DBIRTH belt", belt, seq=1)) == [Online("plant/press/belt")]
    actions = edge.says("DDATA belt", {"alias": 9, "boolean_value": False}, seq=2)
    assert points(actions) == [Point("on", NOW_MS * 1000, Kind.BOOL, 0.0)]
    assert [a.path for a in actions if isinstance(a, Points)] == ["plant/press/belt"]
    assert others(edge.says("DDEATH belt", seq=3)) == [Offline("plant/press/belt")]


def test_what_is_missing_is_counted_and_the_birth_asked_for_once(edge: Edge) -> None:
    edge.is_born()
    actions = edge.says("NDATA", {"alias": 1, "double_value": 1.0}, seq=4)
    assert others(actions) == [Gap(3), AskRebirth("spBv1.0/plant/NCMD/press")]
    assert [a.decoded.gaps for a in actions if isinstance(a, Points)] == [3]
    assert others(edge.says("NDATA", {"alias": 1, "double_value": 1.0}, seq=6)) == [Gap(1)]
    edge.now += timedelta(seconds=31)
    again = edge.says("NDATA", {"alias": 1, "double_value": 1.0}, seq=8)
    assert others(again) == [Gap(1), AskRebirth("spBv1.0/plant/NCMD/press")]


def test_the_count_goes_round_and_the_same_message_twice_is_no_gap(edge: Edge) -> None:
    edge.is_born()
    for number in (*range(1, 256), 0, 1, 1):
        assert others(edge.says("NDATA", {"alias": 1, "double_value": 1.0}, seq=number)) == []


def test_what_no_birth_has_named_is_refused_and_the_birth_asked_for(edge: Edge) -> None:
    actions = edge.says("NDATA", {"alias": 1, "double_value": 1.0}, seq=77)
    assert others(actions) == [AskRebirth("spBv1.0/plant/NCMD/press")]
    assert points(actions) == []
    [told] = [a.decoded for a in actions if isinstance(a, Points)]
    assert [refusal.reason for refusal in told.refused] == ["unknown_alias"]
    assert others(edge.is_born()) == [Online("plant/press")]


def test_a_death_ends_a_node_s_life_but_not_that_of_an_older_connection(edge: Edge) -> None:
    edge.is_born()
    assert edge.says("NDEATH", bd_seq(2)) == []
    assert edge.says("NDEATH", bd_seq(3)) == [Offline("plant/press")]
    after = edge.says("NDATA", {"alias": 1, "double_value": 1.0}, seq=2)
    assert points(after) == []


def test_the_birth_of_another_life_ends_the_one_before_but_not_one_more_of_the_same(
    edge: Edge,
) -> None:
    edge.is_born()
    assert others(edge.is_born()) == [Online("plant/press")]
    again = edge.says("NBIRTH", bd_seq(4), TEMP, seq=0)
    assert others(again) == [Offline("plant/press"), Online("plant/press")]


def test_quality_is_kept_and_null_is_bad_without_a_value(edge: Edge) -> None:
    actions = edge.says(
        "NBIRTH",
        bd_seq(0),
        {**LEVEL, "name": "good", "properties": {"Quality": 192}},
        {**LEVEL, "name": "stale", "properties": {"Quality": 500}},
        {**LEVEL, "name": "bad", "properties": {"Quality": 0}},
        {"name": "null", "datatype": BOOLEAN, "is_null": True},
        {"name": "mode", "datatype": STRING, "is_null": True},
        seq=0,
    )
    held = {point.metric: point for point in points(actions)}
    assert [held[name].quality for name in ("good", "stale", "bad", "null")] == [
        Quality.GOOD,
        Quality.UNCERTAIN,
        Quality.BAD,
        Quality.BAD,
    ]
    assert held["null"].kind is Kind.BOOL
    assert math.isnan(float(held["null"].value))
    assert (held["mode"].kind, held["mode"].value) == (Kind.TEXT, "")


def test_what_is_no_value_here_is_refused_and_its_neighbours_kept(edge: Edge) -> None:
    actions = edge.says(
        "NBIRTH",
        bd_seq(0),
        {"name": "table", "datatype": DATASET, "dataset_value": b""},
        {"name": "huge", "datatype": UINT64, "long_value": 2**63},
        {"name": "word", "datatype": DOUBLE, "string_value": "x"},
        {**LEVEL, "timestamp": NOW_MS + 3_600_000},
        TEMP,
        seq=0,
    )
    assert [point.metric for point in points(actions)] == ["temp"]
    [told] = [a.decoded for a in actions if isinstance(a, Points)]
    assert [(r.metric, r.reason) for r in told.refused] == [
        ("table", "unsupported_value"),
        ("huge", "not_a_number"),
        ("word", "unsupported_value"),
        ("level", "clock_ahead"),
    ]


def test_a_birth_of_more_than_a_node_may_have_changes_nothing(edge: Edge) -> None:
    edge.is_born()
    many = [{**LEVEL, "name": f"m{n}", "alias": 100 + n} for n in range(9_998)]
    edge.says("DBIRTH one", *many, seq=1)
    more = [{**LEVEL, "name": f"m{n}", "alias": 20_100 + n} for n in range(9_998)]
    edge.says("DBIRTH two", *more, seq=2)
    assert 3 + 2 * len(many) < MOST_METRICS
    with pytest.raises(Invalid):
        edge.says("DBIRTH three", LEVEL, TEMP, seq=3)
    assert others(edge.says("DDATA two", {"alias": 20_100, "int_value": 1}, seq=3)) == []


def test_the_command_for_a_birth_is_one_that_sets_the_nodes_own_metric() -> None:
    [metric] = parse(rebirth_command(NOW)).metrics
    assert (metric.name, metric.datatype, metric.boolean_value) == (
        "Node Control/Rebirth",
        BOOLEAN,
        True,
    )


@pytest.mark.parametrize(
    "topic",
    [
        *["spBv1.0/STATE/host", "spBv1.0/plant/NCMD/press", "spBv1.0/plant/DDATA/press"],
        *["spBv1.0/plant/NDATA/press/belt", "v1/devices/x/telemetry", "spAv1.0/plant/NDATA/press"],
    ],
)
def test_other_topics_are_not_an_edge_nodes(topic: str) -> None:
    assert parse_topic(topic) is None


def test_bytes_that_are_no_payload_are_malformed(edge: Edge) -> None:
    with pytest.raises(Malformed):
        edge.node.take("spBv1.0/plant/NDATA/press", b"\xff\xff\xff", NOW, WINDOW)


def test_a_birth_may_also_be_read_by_itself() -> None:
    assert len(decode_sparkplug(payload({**TEMP}, {**LEVEL}), NOW, WINDOW).points) == 2


RECORDED_AT = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
RECORDED = {
    "NBIRTH": "0880d8c1a28c3412120a0562645365711880d8c1a28c34200458031800",
    "DBIRTH": (
        "0880d8c1a28c34121a0a0474656d7010011880d8c1a28c34200a69000000000080344012150a05636f756e741002"
        "1880d8c1a28c34200150fb0112180a056c6576656c10031880d8c1a28c3420035090ddfbff0f12190a05746f7461"
        "6c10041880d8c1a28c3420085880808080802012170a05726174696f10051880d8c1a28c342009650000803e1216"
        "0a0772756e6e696e6710061880d8c1a28c34200b700112180a05737461746510071880d8c1a28c34200c7a046964"
        "6c6512190a0573696e636510081880d8c1a28c34200d5880d8c1a28c3412150a0662726f6b656e10091880d8c1a2"
        "8c34200a38011801"
    ),
    "DDATA": "0880d8c1a28c34121210011881d8c1a28c346900000000008035401802",
    "NDEATH": "0880d8c1a28c3412120a0562645365711880d8c1a28c3420045803",
}
"""As pysparkplug 0.3.2 writes them."""


def test_what_another_s_library_writes_is_read() -> None:
    node = SparkplugNode("plant", "edge")
    window = Window.around(RECORDED_AT, past=timedelta(days=1), ahead=timedelta(minutes=5))

    def hear(kind: str, *device: str) -> list[Action]:
        topic = "/".join(("spBv1.0/plant", kind, "edge", *device))
        return node.take(topic, bytes.fromhex(RECORDED[kind]), RECORDED_AT, window)

    assert hear("NBIRTH")[0] == Online("plant/edge")
    online, born = hear("DBIRTH", "press")
    assert online == Online("plant/edge/press")
    assert isinstance(born, Points)
    assert born.decoded.refused == []
    good = {p.metric: p.value for p in born.decoded.points if p.quality is Quality.GOOD}
    assert good == {
        "temp": 20.5,
        "count": -5,
        "level": -70_000,
        "total": 2.0**40,
        "ratio": 0.25,
        "running": 1.0,
        "state": "idle",
        "since": RECORDED_AT.timestamp() * 1000,
    }
    bad = [p.metric for p in born.decoded.points if p.quality is Quality.BAD]
    assert bad == ["broken"]
    [changed] = hear("DDATA", "press")
    assert isinstance(changed, Points)
    assert [(point.metric, point.value) for point in changed.decoded.points] == [("temp", 21.5)]
    assert hear("NDEATH") == [Offline("plant/edge")]


INT8 = 1


@pytest.mark.parametrize(
    ("datatype", "value", "field", "written"),
    [
        (INT8, -5, "int_value", 0xFB),
        (INT16, -900, "int_value", 2**16 - 900),
        (4, -1, "long_value", 2**64 - 1),
        (UINT64, 2**40, "long_value", 2**40),
        (DOUBLE, 7, "double_value", 7.0),
        (FLOAT, 0.25, "float_value", 0.25),
        (FLOAT, 3.4028234663852886e38, "float_value", 3.4028234663852886e38),
        (BOOLEAN, True, "boolean_value", True),
        (STRING, "run", "string_value", "run"),
    ],
)
def test_a_command_writes_a_value_as_its_birth_declares_it(
    datatype: int, value: Any, field: str, written: Any
) -> None:
    node = SparkplugNode("plant", "edge")
    born = payload({"name": "set", "datatype": datatype}, seq=1)
    node.take("spBv1.0/plant/DBIRTH/edge/press", born, NOW, WINDOW)
    write = node.write("press", "write", {"metric": "set", "value": value}, NOW)
    assert write.topic == "spBv1.0/plant/DCMD/edge/press"
    [metric] = parse(write.payload).metrics
    assert (metric.name, metric.datatype, getattr(metric, field)) == ("set", datatype, written)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        (INT8, 128),
        (INT16, 1.5),
        (UINT64, -1),
        (UINT64, True),
        (DOUBLE, "7"),
        (DOUBLE, math.inf),
        (DOUBLE, math.nan),
        pytest.param(DOUBLE, 10**400, id="beyond a double"),
        pytest.param(UINT64, 10**400, id="beyond any integer"),
        (FLOAT, 1e300),
        (FLOAT, -3.5e38),
        (BOOLEAN, 1),
        (STRING, 1),
        (DATASET, 1),
    ],
)
def test_a_value_of_another_type_is_not_written(datatype: int, value: object) -> None:
    node = SparkplugNode("plant", "edge")
    node.take(
        "spBv1.0/plant/NBIRTH/edge", payload({"name": "set", "datatype": datatype}), NOW, WINDOW
    )
    with pytest.raises(Invalid):
        node.write(None, "write", {"metric": "set", "value": value}, NOW)


def test_what_no_birth_names_is_not_written() -> None:
    node = SparkplugNode("plant", "edge")
    with pytest.raises(Unavailable):
        node.write(None, "write", {"metric": "set", "value": 1}, NOW)
    node.take("spBv1.0/plant/NBIRTH/edge", payload(bd_seq(0)), NOW, WINDOW)
    for name, params in (
        ("write", {"metric": "set", "value": 1}),
        ("write", {"metric": ["set"], "value": 1}),
        ("write", {"metric": "bdSeq"}),
        ("reboot", {}),
    ):
        with pytest.raises(Invalid):
            node.write(None, name, params, NOW)


def test_what_is_missing_before_a_death_is_counted_too() -> None:
    node = SparkplugNode("plant", "edge")
    node.take("spBv1.0/plant/NBIRTH/edge", payload(bd_seq(0), seq=0), NOW, WINDOW)
    node.take("spBv1.0/plant/DBIRTH/edge/press", payload(TEMP, seq=1), NOW, WINDOW)
    actions = node.take("spBv1.0/plant/DDEATH/edge/press", payload(seq=4), NOW, WINDOW)
    assert [action.decoded.gaps for action in actions if isinstance(action, Points)] == [2]


@given(st.lists(st.binary(max_size=80), max_size=5), st.sampled_from(["NBIRTH", "NDATA", "NDEATH"]))
def test_whatever_bytes_a_node_sends_it_goes_on_being_read(sent: list[bytes], kind: str) -> None:
    edge = Edge()
    for each in sent:
        try:
            edge.node.take(f"spBv1.0/plant/{kind}/press", each, NOW, WINDOW)
        except (Malformed, Invalid):
            continue
    assert Online("plant/press") in edge.is_born()
