"""SenML: the examples of RFC 8428 (section 5), and what it asks of who reads it."""

import json
from datetime import UTC, datetime, timedelta

import cbor2
import pytest

from libs.common.errors import Invalid
from libs.common.historian.point import Kind
from services.ingest.domain.payload import Decoded, Point, Window, as_us
from services.ingest.domain.senml import UNITS, decode_senml_cbor, decode_senml_json
from services.ingest.domain.units import is_known

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW_US = as_us(NOW)
EVER = Window.around(NOW, past=timedelta(days=40_000), ahead=timedelta(minutes=5))


def read(*records: object) -> Decoded:
    return decode_senml_json(json.dumps(records).encode(), NOW, EVER)


def test_single_datapoint_of_a_sensor_that_is_its_own_name() -> None:
    decoded = read({"n": "urn:dev:ow:10e2073a01080063", "u": "Cel", "v": 23.1})
    assert decoded.points == [Point("value", NOW_US, Kind.NUMBER, 23.1, unit="degC")]


def test_multiple_datapoints_with_base_name_base_time_and_a_version_before_ours() -> None:
    decoded = read(
        {
            "bn": "urn:dev:ow:10e2073a0108006:",
            "bt": 1.276020076001e09,
            "bu": "A",
            "bver": 5,
            "n": "voltage",
            "u": "V",
            "v": 120.1,
        },
        {"n": "current", "t": -5, "v": 1.2},
        {"n": "current", "t": -4, "v": 1.3},
    )
    assert decoded.refused == []
    assert decoded.points == [
        Point("voltage", 1_276_020_076_001_000, Kind.NUMBER, 120.1, unit="V"),
        Point("current", 1_276_020_071_001_000, Kind.NUMBER, 1.2, unit="ampere"),
        Point("current", 1_276_020_072_001_000, Kind.NUMBER, 1.3, unit="ampere"),
    ]


def test_a_collection_of_resources_named_by_an_address() -> None:
    decoded = read(
        {"bn": "2001:db8::2/", "bt": 1.320078429e09, "n": "temperature", "u": "Cel", "v": 25.2},
        {"n": "humidity", "u": "%RH", "v": 30},
        {"bn": "2001:db8::1/", "n": "temperature", "u": "Cel", "v": 12.3},
    )
    assert [point.metric for point in decoded.points] == [
        "2001:db8::2/temperature",
        "2001:db8::2/humidity",
        "2001:db8::1/temperature",
    ]


def test_all_types_of_values_and_a_sum() -> None:
    decoded = read(
        {"bn": "urn:dev:ow:10e2073a01080063:", "n": "label", "vs": "Machine Room"},
        {"n": "open", "vb": False},
        {"n": "nfc-reader", "vd": "aGkgCg"},
        {"n": "energy", "v": 2, "s": 7.5},
    )
    assert [(p.metric, p.kind, p.value) for p in decoded.points] == [
        ("label", Kind.TEXT, "Machine Room"),
        ("open", Kind.BOOL, 0.0),
        ("nfc-reader", Kind.TEXT, "aGkgCg"),
        ("energy", Kind.NUMBER, 2.0),
        ("energy_sum", Kind.NUMBER, 7.5),
    ]


def test_base_value_and_base_sum_are_added() -> None:
    decoded = read({"bv": 100, "bs": 10, "n": "a", "v": 1}, {"n": "a", "t": 1, "v": 2, "s": 5})
    assert [(p.metric, p.value) for p in decoded.points] == [
        ("a", 101.0),
        ("a", 102.0),
        ("a_sum", 15.0),
    ]


def test_small_times_are_counted_from_now_and_large_ones_from_1970() -> None:
    decoded = read({"n": "a", "v": 1}, {"n": "a", "t": -60, "v": 1}, {"n": "a", "t": 2**28, "v": 1})
    assert [point.ts for point in decoded.points] == [
        NOW_US,
        NOW_US - 60_000_000 + 1,
        2**28 * 1_000_000,
    ]


def test_labels_of_cbor_mean_the_same() -> None:
    """The RFC's example in section 6, with its data as bytes."""
    pack = [
        {-2: "urn:dev:ow:10e2073a0108006:", -3: 1276020076.001, -4: "A", -1: 5},
        {0: "voltage", 1: "V", 2: 120.1},
        {0: "current", 6: -5, 2: 1.2},
        {0: "data", 8: b"hi \n"},
        {0: "exact", 2: cbor2.CBORTag(4, [-1, 273])},
    ]
    decoded = decode_senml_cbor(cbor2.dumps(pack), NOW, EVER)
    assert decoded.refused == []
    assert [(p.metric, p.value, p.unit) for p in decoded.points] == [
        ("voltage", 120.1, "V"),
        ("current", 1.2, "ampere"),
        ("data", "aGkgCg", "ampere"),
        ("exact", 27.3, "ampere"),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"n": "a", "v": 1, "must_": 1}, "unknown_field"),
        ({"n": "a"}, "no_value"),
        ({"n": "a", "v": 1, "vb": True}, "malformed"),
        ({"n": "a", "v": "1"}, "not_a_number"),
        ({"n": "a", "v": True}, "not_a_number"),
        ({"n": "a", "vb": 1}, "malformed"),
        ({"n": 7, "v": 1}, "malformed"),
        ({"n": "a", "t": 1e300, "v": 1}, "bad_timestamp"),
        ({"n": "a", "t": 3600, "v": 1}, "clock_ahead"),
        ({"n": "a", "v": 1, "u": "x" * 65}, "unknown_unit"),
        ({"v": 1}, "bad_metric_name"),
        (7, "malformed"),
    ],
)
def test_a_record_that_is_wrong_is_refused_for_itself(record: object, reason: str) -> None:
    decoded = read({"n": "before", "v": 1}, record, {"n": "after", "v": 1, "ignored": [1]})
    assert [point.metric for point in decoded.points] == ["before", "after"]
    assert [(refusal.index, refusal.reason) for refusal in decoded.refused] == [(1, reason)]


def test_what_follows_a_base_that_cannot_be_read_is_not_stored_with_another_time_or_name() -> None:
    decoded = read({"bt": "noon", "n": "a", "v": 1}, {"n": "a", "v": 2})
    assert decoded.points == []
    assert [refusal.reason for refusal in decoded.refused] == ["not_a_number", "base_refused"]


def test_a_pack_of_a_version_to_come_is_not_read_as_if_it_were_ours() -> None:
    assert [r.reason for r in read({"bver": 11, "n": "a", "v": 1}).refused] == ["unknown_version"]
    assert read({"bver": 26, "n": "a", "u": "kWh", "v": 1}).refused == []


def test_a_second_device_in_a_pack_is_not_taken_for_the_first() -> None:
    decoded = read(
        {"n": "urn:dev:mac:0024befffe804ff1_temp", "v": 1},
        {"n": "urn:dev:mac:0024befffe804ff2_temp", "v": 2},
    )
    assert [(p.metric, p.value) for p in decoded.points] == [("temp", 1.0)]
    assert [refusal.reason for refusal in decoded.refused] == ["foreign_sender"]


@pytest.mark.parametrize("payload", [b"{}", b"7", b"[" + b",".join([b"{}"] * 10_001) + b"]"])
def test_what_is_no_pack_is_refused_whole(payload: bytes) -> None:
    with pytest.raises(Invalid):
        decode_senml_json(payload, NOW, EVER)


def test_every_unit_of_the_registry_that_has_another_name_is_known() -> None:
    assert [unit for unit in UNITS.values() if not is_known(unit)] == []
