import json

import pytest
from fastapi.exceptions import RequestValidationError

from libs.common.errors import Conflict, FieldError, NotFound, TooManyRequests, Unavailable
from libs.common.http.problems import (
    MEDIA_TYPE,
    body_pointer,
    kind_of_fault,
    problem_response,
    problems,
)


def fault(loc: tuple[str | int, ...], kind: str = "value_error", msg: str = "wrong") -> object:
    return {"type": kind, "loc": loc, "msg": msg, "input": None}


@pytest.mark.parametrize(
    ("loc", "pointer"),
    [
        (("body", "values", "temp"), "#/values/temp"),
        (("body", "list", 1, "name"), "#/list/1/name"),
        (("body", "rule", "threshold", "high"), "#/rule/high"),
        (("body", "values", "temp", "[key]"), "#/values/temp"),
        (("body", "values", "temp", "function-after[f(), int]"), "#/values/temp"),
        (("body",), "#"),
        (("query", "from"), "?from"),
        (("path", "device_id"), "{device_id}"),
        (("header", "if_match"), "If-Match:"),
        (("cookie", "session"), "Cookie:session"),
    ],
)
def test_a_fault_is_named_as_the_client_wrote_it(loc: tuple[str | int, ...], pointer: str) -> None:
    body = {
        "values": {"temp": "hot"},
        "list": [{}, {"name": 1}],
        "rule": {"kind": "threshold", "high": "x"},
    }
    error = kind_of_fault(RequestValidationError([fault(loc)], body=body))
    assert error.errors == (FieldError(pointer, "wrong"),)


def test_a_missing_field_is_named_although_it_is_not_there() -> None:
    error = kind_of_fault(RequestValidationError([fault(("body", "name"), "missing")], body={}))
    assert error.errors[0].pointer == "#/name"


def test_a_pointer_escapes_what_json_pointers_and_urls_reserve() -> None:
    assert body_pointer(["a/b~c", "º C", 0]) == "#/a~1b~0c/%C2%BA%20C/0"


def test_validators_speak_without_pythons_prefix() -> None:
    exc = RequestValidationError([fault(("query", "to"), msg="Value error, ends before it begins")])
    assert kind_of_fault(exc).errors[0].reason == "ends before it begins"


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Unavailable("away"), "5"),
        (Unavailable("away", retry_after_s=0), "1"),
        (TooManyRequests("slow down", retry_after_s=2.1), "3"),
    ],
)
def test_later_says_when(error: Unavailable | TooManyRequests, seconds: str) -> None:
    assert problem_response(error, None).headers["retry-after"] == seconds


def test_a_detail_with_half_a_surrogate_pair_is_still_sent() -> None:
    response = problem_response(NotFound("no device \ud800"), "r")
    assert json.loads(bytes(response.body))["detail"] == "no device ?"


def test_a_route_lists_its_kinds_once_per_status() -> None:
    class AlreadyClosed(Conflict):
        title = "Already closed"

    listed = problems(NotFound, Conflict, AlreadyClosed)
    assert set(listed) == {404, 409}
    assert listed[409]["description"] == "Conflict / Already closed"
    shown = listed[404]["content"][MEDIA_TYPE]
    assert shown["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert shown["examples"]["NotFound"]["value"]["type"] == "urn:iiot:problem:not-found"
