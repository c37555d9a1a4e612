"""The chain of a trail: what its hashes say, and what a sheet of it holds."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from services.tenancy.domain.audit import (
    START,
    Entry,
    Head,
    Verification,
    canonical,
    chain,
    hash_of,
)
from services.tenancy.domain.trail_sheet import sheet_row

TENANT = UUID("00000000-0000-4000-8000-000000000001")
AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def entry(seq: int, **more: Any) -> Entry:
    values: dict[str, Any] = {
        "seq": seq,
        "at": AT,
        "service": "ingest",
        "action": "device.updated",
        "outcome": "ok",
        "resource": "device",
        "resource_id": "d",
        "label": "press",
        "actor_kind": "user",
        **dict.fromkeys(("actor_id", "session_id", "address", "user_agent", "request_id")),
        **dict.fromkeys(("before", "after", "detail")),
    }
    return Entry(**{**values, **more})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, 'ä\n"']}, '{"a":[true,null,"ä\\n\\""],"b":1}'),
        (1.0, "1"),
        (-0.0, "0"),
        (1e30, "1" + "0" * 30),
        (Decimal("0.10"), "0.1"),
        (1e-7, "0.0000001"),
        (100, "100"),
        (AT.astimezone(timezone(timedelta(hours=3))), '"2026-11-22T12:00:00.000000Z"'),
        (TENANT, f'"{TENANT}"'),
    ],
)
def test_a_value_has_one_text(value: object, text: str) -> None:
    assert canonical(value) == text


def test_a_hash_stays_what_it_was_from_release_to_release() -> None:
    # Trails that were written must verify for ever: whoever must change this, changes them too.
    assert (
        hash_of(TENANT, entry(1, after={"name": "b", "x": 1.5}), START).hex()
        == "6c5361ea98dcc435cf3922e86ea8013aff3b6da59b41549a4d792bd2f14c1163"
    )


@pytest.mark.parametrize("field", ["at", "label", "resource_id", "outcome", "actor_id", "after"])
def test_every_field_counts(field: str) -> None:
    other: Any = {"at": AT + timedelta(microseconds=1), "actor_id": TENANT, "after": {}}
    changed = replace(entry(1), **{field: other.get(field, "x")})
    assert hash_of(TENANT, entry(1), START) != hash_of(TENANT, changed, START)
    assert hash_of(TENANT, entry(1), START) != hash_of(UUID(int=2), entry(1), START)


def test_two_entries_that_change_places_are_noticed() -> None:
    links = chain(TENANT, [entry(seq) for seq in range(1, 5)], START)
    head = Head(4, links[-1].hash)
    sound = Verification(TENANT, head)
    sound.look_at(links)
    assert sound.verdict(last=0).ok
    swapped = [
        replace(links[0]),
        replace(links[2], entry=replace(links[2].entry, seq=2)),
        replace(links[1], entry=replace(links[1].entry, seq=3)),
        links[3],
    ]
    forged = Verification(TENANT, head)
    forged.look_at(swapped)
    assert forged.verdict(last=0).broken_at == 2
    assert Verification(TENANT, Head()).verdict(last=0).ok


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_spreadsheet_runs_nothing_that_a_sheet_holds(label: str) -> None:
    [link] = chain(TENANT, [entry(1, label=label, user_agent='a "b", c')], START)
    row = sheet_row(link)
    assert f"'{label}" in row
    assert '"a ""b"", c"' in row
