"""Telemetry in InfluxDB's line protocol, as Telegraf writes it. A bad line spoils no other.

A field is a metric: `<measurement>.<field>`, or the measurement alone if the field is called
`value`. Series that differ in their tags are different metrics, so the tags stand behind it, in the
order of their names: `cpu.usage_idle{cpu=cpu0}`. Not so `host`, which is the device itself: lines of
a second host in one message are refused; and not `device_id`, by which somebody who sends for several
devices says whose a line is.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from line_protocol_parser import LineFormatError, parse_line

from libs.common.errors import Malformed
from services.ingest.domain.lines import Addressed, Lines, ReadAddressed
from services.ingest.domain.payload import Decoded, Window

MOST_LINES = 20_000
MOST_JOINED = 16
"""A text may have line ends in it; so many lines are read as one, at most."""

NS_OF: Mapping[str, int] = {
    "ns": 1,
    "n": 1,
    "us": 1_000,
    "u": 1_000,
    "µ": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
"""What times may be counted in, in nanoseconds."""

LONGEST_KEY = 2_048
"""Characters of measurement and tags. A metric's name is shorter by far, and the parser compares every
tag with every other."""

_LATEST_NS = 2**63
_SPACE = re.compile(r"(?<!\\) ")
_MARKS = str.maketrans({"\\": r"\\", ",": r"\,", "=": r"\="})
_ABOUT = frozenset({"host", "device_id"})
"""Tags that say who speaks, not of what."""


def influx_reader(precision: str) -> ReadAddressed:
    """Return the reader of lines whose times are counted in `precision`, one of NS_OF."""
    ns = NS_OF[precision]

    def read(payload: bytes, received_at: datetime, window: Window) -> Addressed:
        return _decode(payload, received_at, window, ns)

    return read


decode_influx = influx_reader("ns")


def _decode(payload: bytes, received_at: datetime, window: Window, ns: int) -> Addressed:
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"not line protocol in UTF-8: byte {error.start} is wrong") from error
    lines = Lines(received_at)
    hosts: dict[str | None, str] = {}
    for number, line in _lines(text):
        if line.startswith("#"):
            continue
        index = lines.next_index()
        if index >= MOST_LINES:
            raise Malformed(f"at most {MOST_LINES} lines in one message")
        if len(line) > LONGEST_KEY and not _SPACE.search(line, 0, LONGEST_KEY + 1):
            detail = f"line {number}: measurement and tags have more than {LONGEST_KEY} characters"
            lines.refuse(None, index, "bad_metric_name", detail, line)
            continue
        try:
            parsed = parse_line(line)
        except (LineFormatError, ValueError, OverflowError) as error:
            lines.refuse(None, index, "malformed", f"line {number}: {error}", line)
            continue
        assert parsed is not None  # neither empty nor a comment
        tags = parsed["tags"]
        device = tags.get("device_id")
        host = tags.get("host")
        if host is not None and hosts.setdefault(device, host) != host:
            detail = f"line {number}: of {host}, and the message is of {hosts[device]}"
            lines.refuse(device, index, "foreign_sender", detail, line)
            continue
        decoded = lines.of(device)
        before = len(decoded.refused)
        _add(decoded, index, parsed, line, window, ns)
        lines.end(device, index)
        if len(decoded.refused) > before:
            lines.number(decoded, before, number)
    return lines.addressed


def _add(
    decoded: Decoded, index: int, parsed: Mapping[str, object], line: str, window: Window, ns: int
) -> None:
    written = parsed["time"]
    if isinstance(written, int):
        if not -_LATEST_NS < written * ns < _LATEST_NS:
            decoded.refuse(index, None, "bad_timestamp", "no such time: which precision?", line)
            return
        ts = written * ns // 1_000
        disbelief = window.disbelief(ts, written)
        if disbelief is not None:
            decoded.refuse(index, None, *disbelief, line)
            return
    else:
        ts = decoded.received_at + index
    measurement, tags, fields = parsed["measurement"], parsed["tags"], parsed["fields"]
    assert isinstance(tags, dict)
    assert isinstance(fields, dict)
    marks = ",".join(
        f"{tag.translate(_MARKS)}={tags[tag].translate(_MARKS)}"
        for tag in sorted(tags)
        if tag not in _ABOUT
    )
    suffix = f"{{{marks}}}" if marks else ""
    # In the order of their names: the parser has them in none.
    for name in sorted(fields):
        stem = f"{measurement}" if name == "value" else f"{measurement}.{name}"
        decoded.add(index, stem + suffix, ts, fields[name])


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers from 1 on; those within a text in quotes are one."""
    physical = text.split("\n")
    at = 0
    while at < len(physical):
        line = physical[at].rstrip("\r")
        number = at + 1
        at += 1
        if not line.strip():
            continue
        if _is_open(line):
            for more in range(at, min(at + MOST_JOINED, len(physical))):
                if _quotes(physical[more]) % 2:
                    line = "\n".join([line, *physical[at : more + 1]]).rstrip("\r")
                    at = more + 1
                    break
        yield number, line


def _is_open(line: str) -> bool:
    """Whether a line ends within a text: the quotes of its fields do not come in pairs."""
    if '"' not in line or line.startswith("#"):
        return False
    start = 0
    while True:
        # The fields begin at the first space that is not escaped; quotes before it are letters.
        start = line.find(" ", start)
        if start < 0:
            return False
        if line[start - 1] != "\\":
            return _quotes(line[start:]) % 2 == 1
        start += 1


def _quotes(text: str) -> int:
    return text.replace("\\\\", "").replace('\\"', "").count('"')
