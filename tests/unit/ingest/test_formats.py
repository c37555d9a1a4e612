"""Every form a device may write in becomes the same points; what is wrong spoils nothing beside it."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Invalid, Malformed, UnsupportedMedia
from libs.common.historian.point import Kind, Quality
from services.ingest.domain.formats import (
    ADDRESSED,
    FORMATS,
    format_of,
    recognise,
    sniff,
    with_defaults,
)
from services.ingest.domain.influx import influx_reader
from services.ingest.domain.payload import Decoded, Point, Window, as_us, decode
from services.ingest.domain.profile import Profile
from services.ingest.domain.protocol import PayloadFormat

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW_US = as_us(NOW)
WINDOW = Window.around(NOW, past=timedelta(days=365), ahead=timedelta(minutes=5))
NOON_NS = NOW_US * 1000


def read(written: PayloadFormat, payload: bytes) -> Decoded:
    return FORMATS[written](payload, NOW, WINDOW)


def values(decoded: Decoded) -> dict[str, float | str]:
    return {point.metric: point.value for point in decoded.points}


def faults(decoded: Decoded) -> list[tuple[int, str]]:
    return [(refusal.index, refusal.reason) for refusal in decoded.refused]


ONE_POINT = {
    PayloadFormat.JSON: b'{"ts": "2026-01-31T12:00:00Z", "values": {"temp": 21.5}}',
    PayloadFormat.CBOR: cbor2.dumps({"ts": NOW, "values": {"temp": 21.5}}),
    PayloadFormat.SENML_JSON: b'[{"bt": 1769860800, "n": "temp", "v": 21.5}]',
    PayloadFormat.SENML_CBOR: cbor2.dumps([{-3: 1769860800, 0: "temp", 2: 21.5}]),
    PayloadFormat.NDJSON: b'{"ts":1769860800000,"values":{"temp":21.5}}\n{"values":{}}\n',
    PayloadFormat.CSV: b"ts,temp\r\n2026-01-31T12:00:00Z,21.5\r\n",
    PayloadFormat.INFLUX: f"temp,host=press value=21.5 {NOON_NS}\n".encode(),
}


@pytest.mark.parametrize("written", ONE_POINT)
def test_a_form_is_recognised_and_read_as_the_same_point(written: PayloadFormat) -> None:
    assert sniff(ONE_POINT[written]) is written
    decoded = read(written, ONE_POINT[written])
    assert decoded.points == [Point("temp", NOW_US, Kind.NUMBER, 21.5)]
    assert decoded.refused == []


@pytest.mark.parametrize(
    ("payload", "written"),
    [
        (b"", PayloadFormat.JSON),
        (b"hello", PayloadFormat.JSON),
        (b'  {"a": 1}', PayloadFormat.JSON),
        (b'{\n "a": 1,\n "b": 2\n}', PayloadFormat.JSON),
        (b'[{"values": {"n": 1}}]', PayloadFormat.JSON),
        (b'[{"n": 5, "v": 2}]', PayloadFormat.JSON),
        (b"\x08\x80\x01", PayloadFormat.SPARKPLUG),
        (b"# by telegraf\nmem used=1i", PayloadFormat.INFLUX),
        (b"ts,metric,value\n", PayloadFormat.CSV),
        (b"\xd9\xd9\xf7\xa1\x61a\x01", PayloadFormat.CBOR),
        (b"\x81", PayloadFormat.CBOR),
    ],
)
def test_what_tells_little_is_taken_for_what_it_most_likely_is(
    payload: bytes, written: PayloadFormat
) -> None:
    assert sniff(payload) is written


def test_content_types_name_forms_whatever_their_parameters() -> None:
    assert format_of("text/CSV; charset=utf-8") is PayloadFormat.CSV
    assert format_of("text/html") is None
    assert format_of("") is None


@pytest.mark.parametrize(
    ("named", "declared", "written"),
    [
        (PayloadFormat.CSV, PayloadFormat.CBOR, PayloadFormat.CSV),
        (None, PayloadFormat.CBOR, PayloadFormat.CBOR),
        (None, None, PayloadFormat.JSON),
    ],
)
def test_a_form_is_the_sender_s_word_else_the_profile_s_else_told_by_its_looks(
    named: PayloadFormat | None, declared: PayloadFormat | None, written: PayloadFormat
) -> None:
    profile = Profile(uuid4(), 1, payload_format=declared)
    assert recognise(b'{"a": 1}', named, profile) == (written, FORMATS[written])


def test_a_profile_of_native_values_takes_no_bytes() -> None:
    profile = Profile(uuid4(), 1, payload_format=PayloadFormat.NATIVE)
    with pytest.raises(UnsupportedMedia):
        recognise(b'{"a": 1}', None, profile)
    assert recognise(b'{"a": 1}', PayloadFormat.JSON, profile) == (PayloadFormat.JSON, decode)


def test_quality_and_unit_of_a_whole_message_are_those_of_points_that_have_none() -> None:
    reader = with_defaults(decode, unit="degF", quality=Quality.BAD)
    decoded = reader(b'[{"a": 1}, {"values": {"b": 2}, "units": {"b": "bar"}}]', NOW, WINDOW)
    assert [(p.metric, p.quality, p.unit) for p in decoded.points] == [
        ("a", Quality.BAD, "degF"),
        ("b", Quality.BAD, "bar"),
    ]


def test_a_reading_may_say_how_good_it_is_in_which_units_and_which_number_it_has() -> None:
    decoded = decode(
        b'{"values": {"t": 70, "z": null}, "quality": "bad", "units": {"t": "degF"}, "seq": 7}',
        NOW,
        WINDOW,
    )
    t, z = decoded.points
    assert t == Point("t", NOW_US, Kind.NUMBER, 70.0, Quality.BAD, "degF")
    assert z.value != z.value, "a bad reading's value may be none"
    assert (decoded.seq, decoded.first_seq, decoded.gaps) == (7, 7, 0)


def test_numbers_missing_within_a_message_are_counted_and_a_restart_is_no_gap() -> None:
    readings = [{"values": {"a": 1}, "seq": seq} for seq in (3, 4, 8, 1, 2)]
    decoded = decode(json.dumps(readings).encode(), NOW, WINDOW)
    assert (decoded.first_seq, decoded.seq, decoded.gaps) == (3, 2, 3)


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"quality": "splendid"}, "bad_quality"),
        ({"quality": ["good"]}, "bad_quality"),
        ({"units": {"t": 5}}, "malformed"),
        ({"units": "degC"}, "malformed"),
        ({"units": {"t": "x" * 65}}, "malformed"),
        ({"seq": -1}, "malformed"),
        ({"seq": 1.5}, "malformed"),
    ],
)
def test_what_stands_wrongly_beside_values_refuses_the_reading(
    beside: dict[str, object], reason: str
) -> None:
    assert faults(decode(json.dumps({"values": {"t": 1}, **beside}).encode(), NOW, WINDOW)) == [
        (0, reason)
    ]


def test_a_bad_line_of_json_is_named_by_its_number_and_its_neighbours_are_kept() -> None:
    decoded = read(PayloadFormat.NDJSON, b'{"a": 1}\n{"a": \n\n[1]\n{"b": 2}')
    assert values(decoded) == {"a": 1.0, "b": 2.0}
    assert faults(decoded) == [(1, "malformed"), (2, "malformed")]
    assert decoded.refused[0].detail.startswith("line 2: ")
    assert decoded.refused[1].detail.startswith("line 4: ")
    assert decoded.reading_of(1) == 3


def test_a_long_table_has_a_point_a_row_with_its_unit_and_quality() -> None:
    table = (
        "ts,metric,value,unit,quality\n"
        "2026-01-31T12:00:00Z,temp,21.5,degC,\n"
        '1769860800000,mode,"auto, slow",,uncertain\n'
        ",running,true,,\n"
        "2026-01-31T12:00:00,temp,1,,\n"
        ",temp,,,\n"
        ",temp,1,,awful\n"
        ",temp\n"
    )
    decoded = read(PayloadFormat.CSV, table.encode())
    assert decoded.points == [
        Point("temp", NOW_US, Kind.NUMBER, 21.5, Quality.GOOD, "degC"),
        Point("mode", NOW_US, Kind.TEXT, "auto, slow", Quality.UNCERTAIN),
        Point("running", NOW_US + 2, Kind.BOOL, 1.0),
    ]
    assert faults(decoded) == [
        (3, "naive_timestamp"),
        (4, "unsupported_value"),
        (5, "bad_quality"),
        (6, "malformed"),
    ]
    assert "line 8" in decoded.refused[-1].detail


def test_a_wide_table_has_a_reading_a_row_and_empty_cells_say_nothing() -> None:
    decoded = read(PayloadFormat.CSV, b"\xef\xbb\xbfts,temp,mode\n1769860800000,1,\n,,auto\n")
    assert decoded.points == [
        Point("temp", NOW_US, Kind.NUMBER, 1.0),
        Point("mode", NOW_US + 1, Kind.TEXT, "auto"),
    ]


@pytest.mark.parametrize(
    "table",
    [b"ts,temp,temp\n", b"ts\n", b"a,b\n1,2\n", b"ts,metric,value,colour\n", b"ts," + b"m," * 2000],
)
def test_a_header_that_is_none_refuses_the_table(table: bytes) -> None:
    with pytest.raises(Invalid):
        read(PayloadFormat.CSV, table)


@pytest.mark.parametrize("table", [b"", b"\xff\xfets,temp\n"])
def test_what_is_no_table_at_all_is_malformed(table: bytes) -> None:
    with pytest.raises(Malformed):
        read(PayloadFormat.CSV, table)


def test_lines_of_several_devices_are_told_apart_and_numbered_as_they_stand() -> None:
    payload = b"device_id,ts,temp\nA,,1\nB,,2\n,,3\nA,,4\n"
    addressed = ADDRESSED[PayloadFormat.CSV](payload, NOW, WINDOW)
    assert {name: [p.value for p in d.points] for name, d in addressed.items()} == {
        "A": [1.0, 4.0],
        "B": [2.0],
        None: [3.0],
    }
    assert [addressed["A"].reading_of(position) for position in (0, 1)] == [0, 3]


def test_a_device_that_names_another_in_a_line_is_refused_that_line_alone() -> None:
    decoded = read(PayloadFormat.NDJSON, b'{"a": 1}\n{"device_id": "B", "values": {"a": 2}}')
    assert values(decoded) == {"a": 1.0}
    assert faults(decoded) == [(1, "foreign_sender")]


TELEGRAF = b"""\
cpu,cpu=cpu0,host=press-7 usage_idle=91.2,usage_user=5.1,usage_system=2.4 1769860800000000000
cpu,cpu=cpu-total,host=press-7 usage_idle=93.4,usage_user=4.2,usage_system=1.9 1769860800000000000
mem,host=press-7 available_percent=61.02,total=8201232384i,used=2601230336u 1769860800000000000
disk,device=sda1,fstype=ext4,host=press-7,mode=rw,path=/ free=31212126208i,used_percent=44.2 1769860800000000000
mqtt_consumer,host=press-7,topic=plant/line\\ 1/temp value=21.5 1769860800000000000
modbus,host=press-7,name=press,slave_id=1,type=holding_register pressure=6.25,running=true,state="AUTO, \\"slow\\"" 1769860800000000000
"""


def test_what_telegraf_writes_is_stored_with_a_metric_for_each_series() -> None:
    decoded = read(PayloadFormat.INFLUX, TELEGRAF)
    assert decoded.refused == []
    assert values(decoded) == {
        "cpu.usage_idle{cpu=cpu0}": 91.2,
        "cpu.usage_user{cpu=cpu0}": 5.1,
        "cpu.usage_system{cpu=cpu0}": 2.4,
        "cpu.usage_idle{cpu=cpu-total}": 93.4,
        "cpu.usage_user{cpu=cpu-total}": 4.2,
        "cpu.usage_system{cpu=cpu-total}": 1.9,
        "mem.available_percent": 61.02,
        "mem.total": 8201232384.0,
        "mem.used": 2601230336.0,
        "disk.free{device=sda1,fstype=ext4,mode=rw,path=/}": 31212126208.0,
        "disk.used_percent{device=sda1,fstype=ext4,mode=rw,path=/}": 44.2,
        "mqtt_consumer{topic=plant/line 1/temp}": 21.5,
        "modbus.pressure{name=press,slave_id=1,type=holding_register}": 6.25,
        "modbus.running{name=press,slave_id=1,type=holding_register}": 1.0,
        "modbus.state{name=press,slave_id=1,type=holding_register}": 'AUTO, "slow"',
    }
    assert {point.ts for point in decoded.points} == {NOW_US}


@pytest.mark.parametrize(("precision", "factor"), [("ns", 1000), ("us", 1), ("ms", 0.001)])
def test_times_of_lines_are_counted_in_what_is_said(precision: str, factor: float) -> None:
    line = f"temp value=1 {int(NOW_US * factor)}".encode()
    [point] = influx_reader(precision)(line, NOW, WINDOW)[None].points
    assert point.ts == NOW_US


def test_a_text_may_have_line_ends_and_a_bad_line_spoils_no_other() -> None:
    lines = b'a s="one\ntwo" \nb value=1\nc,x value=1\nd value=1 99999999999999999999\ne value=NaN\nf value=2i 1\n# g\nh"i value="\nk value=3'
    decoded = read(PayloadFormat.INFLUX, lines)
    assert values(decoded) == {"a.s": "one\ntwo", "b": 1.0, "k": 3.0}
    assert [reason for _, reason in faults(decoded)] == [
        *["malformed"] * 3,
        "too_old",
        "malformed",
    ]


def test_lines_of_a_second_host_would_be_taken_for_the_firsts_and_are_refused() -> None:
    decoded = read(PayloadFormat.INFLUX, b"m,host=a value=1\nm,host=b value=2\nm,host=a value=3")
    assert [point.value for point in decoded.points] == [1.0, 3.0]
    assert faults(decoded) == [(1, "foreign_sender")]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xa1",
        b"\xa1\x64temp",
        b"\x81" * 100_000,
        b"\x9b\x00\xff\xff\xff\xff\xff\xff\xff",
        b"\x5b\x00\x00\x00\x00\xff\xff\xff\xff",
        b"\xa2\x61a\x01\x61a\x02",
        b"\xa1\x61a\x01\x00",
        cbor2.dumps(cbor2.CBORTag(5, [10**9, 1])),
        cbor2.dumps(cbor2.CBORTag(35, "(a+)+$")),
        cbor2.dumps(cbor2.CBORTag(28, [cbor2.CBORTag(29, 0)])),
        b"\xd9\x01\x00\x82\x64aaaa\xd8\x19\x00",
    ],
    ids=lambda payload: payload[:12].hex(),
)
def test_cbor_that_breaks_off_or_is_a_bomb_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        read(PayloadFormat.CBOR, payload)


def test_values_cbor_has_and_we_have_not_are_refused_each_for_itself() -> None:
    payload = cbor2.dumps(
        {"ok": 1, "data": b"x", "nan": float("nan"), "huge": 2**70, "tag": cbor2.CBORTag(999, 1)}
    )
    decoded = read(PayloadFormat.CBOR, payload)
    assert values(decoded) == {"ok": 1.0}
    assert {refusal.metric for refusal in decoded.refused} == {"data", "nan", "huge", "tag"}
    for refusal in decoded.refused:
        msgspec.json.encode(refusal.part)


@given(st.binary(max_size=200), st.sampled_from(sorted(FORMATS)))
def test_any_bytes_in_any_form_end_in_points_refusals_or_a_kind_of_error(
    payload: bytes, written: PayloadFormat
) -> None:
    with contextlib.suppress(Malformed, Invalid):
        decoded = read(written, payload)
        for refusal in decoded.refused:
            msgspec.json.encode(refusal.part)
            assert refusal.detail.isprintable()
    assert isinstance(sniff(payload), PayloadFormat)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=4) | st.integers(-6, 9), inner, max_size=4)
        ),
        max_leaves=10,
    )
)
def test_any_cbor_is_taken_apart_or_refused(value: object) -> None:
    for written in (PayloadFormat.CBOR, PayloadFormat.SENML_CBOR):
        with contextlib.suppress(Malformed, Invalid):
            for refusal in read(written, cbor2.dumps(value)).refused:
                msgspec.json.encode(refusal.part)


def test_a_table_of_a_spreadsheet_with_decimal_commas_is_read_as_its_writer_meant_it() -> None:
    table = "ts;temp;pressure;note\n2026-01-31T12:00:00Z; 21,5 ;1.013;a,b\n"
    assert values(read(PayloadFormat.CSV, table.encode())) == {
        "temp": 21.5,
        "pressure": 1.013,
        "note": "a,b",
    }


def test_a_cell_that_is_almost_a_number_makes_no_series_of_texts() -> None:
    table = 'ts,a,b,c,d\n,NaN,-inf," 1.5 ","2,5"\n'
    decoded = read(PayloadFormat.CSV, table.encode())
    assert values(decoded) == {"c": 1.5, "d": 2.5}
    assert faults(decoded) == [(0, "not_a_number"), (0, "not_a_number")]


def test_tags_that_hold_what_parts_tags_are_not_taken_for_others() -> None:
    lines = rb"m,a=1\,b\=2 f=1" + b"\n" + rb"m,a=1,b=2 f=2"
    assert values(read(PayloadFormat.INFLUX, lines)) == {
        r"m.f{a=1\,b\=2}": 1.0,
        "m.f{a=1,b=2}": 2.0,
    }
