"""What is said to a device, and what it may answer."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from libs.common.errors import Invalid, Malformed
from services.ingest.domain.command import (
    LONGEST_ERROR,
    MOST_BYTES,
    CommandStatus,
    Outgoing,
    check_storable,
    read_reply,
    to_json,
)

ID = UUID("6c52aa38-3fab-495a-996e-698d76517b74")


def answer(**said: object) -> bytes:
    """Return a device's answer as it sends it."""
    return json.dumps({"id": str(ID), "status": "succeeded", **said}).encode()


def test_a_command_goes_down_with_what_a_device_needs_of_it() -> None:
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    said = json.loads(to_json(Outgoing(ID, "set_speed", {"rpm": 900}, noon, noon)))
    assert said == {
        "id": str(ID),
        "name": "set_speed",
        "params": {"rpm": 900},
        "expires_at": "2026-06-01T12:00:00Z",
    }


def test_an_answer_says_what_became_of_a_command() -> None:
    reply = read_reply(answer(result={"rpm": [899.5, None, True]}))
    assert (reply.id, reply.status, reply.result) == (ID, "succeeded", {"rpm": [899.5, None, True]})
    assert read_reply(answer(status="failed", error="jammed")).error == "jammed"


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"", Malformed),
        (b"done", Malformed),
        (b"\xff\xfe", Malformed),
        (b'{"result": ' + b"[" * 100_000, Malformed),
        (b"{}", Invalid),
        (b"[]", Invalid),
        (answer(id="7"), Invalid),
        (answer(id=None), Invalid),
        (answer(status="done"), Invalid),
        (answer(status="queued"), Invalid),
        (answer(urgent=True), Invalid),
        (answer(error=7), Invalid),
        (answer(error="x" * (LONGEST_ERROR + 1)), Invalid),
        (answer(error="a\0b"), Invalid),
        (answer(result="x" * MOST_BYTES), Invalid),
        (answer(result={"a": ["\0"]}), Invalid),
        (answer(result=2**53 + 1), Invalid),
        (answer(result=[-(10**400)]), Invalid),
        (answer(result=json.loads("[" * 33 + "]" * 33)), Invalid),
        (answer(result={"a\0": 1}), Invalid),
        (b'{"id": "%s", "status": "failed", "result": 1e999}' % str(ID).encode(), Invalid),
        (b'{"id": "%s", "status": "failed", "result": "\\ud800"}' % str(ID).encode(), Malformed),
    ],
)
def test_what_is_no_answer_is_refused(payload: bytes, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        read_reply(payload)


def test_a_backslash_before_a_zero_is_no_nul() -> None:
    check_storable({"path": "C:\\u0000"}, "#/params")


def test_three_states_are_final() -> None:
    final = {status.value for status in CommandStatus if status.is_final}
    assert final == {"succeeded", "failed", "expired"}
