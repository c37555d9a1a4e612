"""Each kind of break is planted in a small API and found; what only adds is none."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from deploy.cli.openapi_changes import breaks

Document = dict[str, Any]

DEVICES: Document = {
    "paths": {
        "/devices": {
            "get": {
                "operationId": "list_devices",
                "x-permission": "devices:read",
                "parameters": [
                    {"in": "query", "name": "limit", "schema": {"type": "integer", "maximum": 200}},
                    {"in": "query", "name": "sort", "schema": {"enum": ["name", "age"]}},
                ],
                "responses": {
                    "200": {
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "array",
                                    "items": {"$ref": "#/components/schemas/Out"},
                                }
                            }
                        }
                    },
                    "404": {"description": "gone some day"},
                },
            },
            "post": {
                "operationId": "add_device",
                "x-permission": "devices:write",
                "requestBody": {
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/In"}},
                        "text/csv": {"schema": {"type": "string"}},
                    }
                },
                "responses": {"201": {"description": "made"}},
            },
        }
    },
    "components": {
        "schemas": {
            "In": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "maxLength": 128},
                    "kind": {"enum": ["press", "pump"], "type": "string"},
                    "speed": {"type": "number"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
            },
            "Out": {
                "type": "object",
                "required": ["id", "status"],
                "properties": {
                    "id": {"type": "string", "format": "uuid"},
                    "status": {"type": "string", "enum": ["on", "off"]},
                    "count": {"type": "integer"},
                    "place": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
            },
        }
    },
}

Edit = Callable[[Document, Document, Document, Document], object]


def changed(edit: Edit) -> Document:
    """Return the API with an edit of (get, post, what goes in, what comes out)."""
    document = copy.deepcopy(DEVICES)
    methods, schemas = document["paths"]["/devices"], document["components"]["schemas"]
    edit(methods["get"], methods["post"], schemas["In"], schemas["Out"])
    return document


PLANTED: dict[str, tuple[str, Edit]] = {
    "an operation has another name": ("is called", lambda g, p, i, o: g.update(operationId="x")),
    "a permission": ("needs the permission", lambda g, p, i, o: g.update({"x-permission": "a:b"})),
    "a parameter removed": ("the parameter is gone", lambda g, p, i, o: g["parameters"].pop()),
    "a parameter required": (
        "is required now",
        lambda g, p, i, o: g["parameters"][0].update(required=True),
    ),
    "a new parameter required": (
        "new and required",
        lambda g, p, i, o: g["parameters"].append(
            {"in": "query", "name": "site", "required": True, "schema": {}}
        ),
    ),
    "a parameter narrowed": (
        "maximum was 200, is 100",
        lambda g, p, i, o: g["parameters"][0]["schema"].update(maximum=100),
    ),
    "a parameter's choice removed": (
        "does not take 'age'",
        lambda g, p, i, o: g["parameters"][1]["schema"]["enum"].remove("age"),
    ),
    "a body required": (
        "the body is required",
        lambda g, p, i, o: p["requestBody"].update(required=True),
    ),
    "no body": ("takes no body", lambda g, p, i, o: p.pop("requestBody")),
    "a media type": (
        "does not take text/csv",
        lambda g, p, i, o: p["requestBody"]["content"].pop("text/csv"),
    ),
    "a field required": (
        "body.speed: is required",
        lambda g, p, i, o: i["required"].append("speed"),
    ),
    "a field removed": (
        "body.tags: the field is gone",
        lambda g, p, i, o: i["properties"].pop("tags"),
    ),
    "a field's type": (
        "body.speed: was number, is integer",
        lambda g, p, i, o: i["properties"]["speed"].update(type="integer"),
    ),
    "a field's length": (
        "maxLength was 128, is 64",
        lambda g, p, i, o: i["properties"]["name"].update(maxLength=64),
    ),
    "a field's pattern": (
        "pattern was none",
        lambda g, p, i, o: i["properties"]["name"].update(pattern="^a"),
    ),
    "a field's choice": (
        "does not take 'pump'",
        lambda g, p, i, o: i["properties"]["kind"]["enum"].remove("pump"),
    ),
    "an item's type": (
        "body.tags[]: was string, is integer",
        lambda g, p, i, o: i["properties"]["tags"]["items"].update(type="integer"),
    ),
    "null not taken": (
        "body.note: was null",
        lambda g, p, i, o: i["properties"].update(note={"type": "string"}),
    ),
    "an answer's field removed": (
        "200[].count: the field is gone",
        lambda g, p, i, o: o["properties"].pop("count"),
    ),
    "an answer's field optional": (
        "200[].status: may be missing",
        lambda g, p, i, o: o["required"].remove("status"),
    ),
    "an answer's type": (
        "200[].count: was integer, is string",
        lambda g, p, i, o: o["properties"]["count"].update(type="string"),
    ),
    "an answer's number": (
        "200[].count: was integer, is number",
        lambda g, p, i, o: o["properties"]["count"].update(type="number"),
    ),
    "an answer's null": (
        "200[].id: was string, is null",
        lambda g, p, i, o: o["properties"].update(
            id={"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]}
        ),
    ),
    "an answer's format": (
        "200[].id: its format",
        lambda g, p, i, o: o["properties"]["id"].pop("format"),
    ),
    "an answer's status": (
        "does not answer 201",
        lambda g, p, i, o: p.update(responses={"200": {"description": "made"}}),
    ),
    "an answer's media type": (
        "is not application/json",
        lambda g, p, i, o: g["responses"]["200"].update(content={}),
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_break_is_found_and_named(planted: str) -> None:
    said, edit = PLANTED[planted]
    (found,) = breaks(DEVICES, changed(edit))
    assert found.is_break
    assert said in str(found)


def test_a_path_and_a_method_that_are_gone() -> None:
    without = copy.deepcopy(DEVICES)
    del without["paths"]["/devices"]["post"]
    assert [str(b) for b in breaks(DEVICES, without)] == ["POST /devices: the method is gone"]
    assert [str(b) for b in breaks(DEVICES, {"paths": {}})] == ["/devices: the path is gone"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda g, p, i, o: None,
        lambda g, p, i, o: i["properties"].update(site={"type": "string"}),
        lambda g, p, i, o: o["properties"].update(site={"type": "string"}),
        lambda g, p, i, o: o["required"].append("count"),
        lambda g, p, i, o: i["required"].remove("name"),
        lambda g, p, i, o: i["properties"]["kind"]["enum"].append("valve"),
        lambda g, p, i, o: i["properties"]["name"].update(maxLength=256),
        lambda g, p, i, o: g["parameters"].append({"in": "query", "name": "q", "schema": {}}),
        lambda g, p, i, o: g["responses"].pop("404"),
        lambda g, p, i, o: p["responses"].update({"409": {"description": "taken"}}),
        lambda g, p, i, o: o["properties"].update(place={"type": "string"}),
    ],
)
def test_what_adds_or_promises_more_is_no_break(edit: Edit) -> None:
    assert breaks(DEVICES, changed(edit)) == []


def test_another_value_in_an_answer_is_a_warning() -> None:
    (found,) = breaks(
        DEVICES, changed(lambda g, p, i, o: o["properties"]["status"]["enum"].append("idle"))
    )
    assert not found.is_break
    assert "may be 'idle' now" in str(found)
