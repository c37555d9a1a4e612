"""One document out of many."""

from typing import Any

from services.gateway.domain.openapi import Document, merge
from services.gateway.domain.tags import TAGS


def a_document(path: str, schemas: dict[str, Any], operation_id: str = "get") -> Document:
    first = next(iter(schemas))
    answer = {
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{first}"}}}
    }
    return {
        "openapi": "3.1.0",
        "paths": {path: {"get": {"operationId": operation_id, "responses": {"200": answer}}}},
        "components": {"schemas": schemas},
    }


def merged(**documents: Document) -> Document:
    return merge(documents, title="T", version="1", description="D")


def ref_of(document: Document, path: str) -> str:
    answer = document["paths"][path]["get"]["responses"]["200"]
    ref: str = answer["content"]["application/json"]["schema"]["$ref"]
    return ref.rpartition("/")[2]


def test_a_component_that_all_define_alike_stands_once() -> None:
    problem = {"Problem": {"type": "object"}}
    document = merged(
        a=a_document("/api/v1/a", problem), b=a_document("/api/v1/b", problem, "other")
    )
    assert list(document["components"]["schemas"]) == ["Problem"]


def test_what_differs_gets_the_services_name_from_the_second_on() -> None:
    document = merged(
        a=a_document("/api/v1/a", {"Page": {"type": "object"}}),
        b=a_document("/api/v1/b", {"Page": {"type": "array"}}),
    )
    assert document["components"]["schemas"] == {
        "Page": {"type": "object"},
        "BPage": {"type": "array"},
    }
    assert ref_of(document, "/api/v1/a") == "Page"
    assert ref_of(document, "/api/v1/b") == "BPage"
    assert document["paths"]["/api/v1/a"]["get"]["operationId"] == "get"
    assert document["paths"]["/api/v1/b"]["get"]["operationId"] == "b_get"


def test_what_is_renamed_is_called_so_by_generators_too() -> None:
    document = merged(
        a=a_document("/api/v1/a", {"State": {"title": "State", "enum": ["on"]}}),
        b=a_document("/api/v1/b", {"State": {"title": "State", "enum": ["open"]}}),
    )
    titles = {n: s["title"] for n, s in document["components"]["schemas"].items()}
    assert titles == {"State": "State", "BState": "BState"}


def test_what_refers_to_something_renamed_is_another_thing_too() -> None:
    page = {"properties": {"item": {"$ref": "#/components/schemas/Item"}}}
    document = merged(
        a=a_document("/api/v1/a", {"Page": page, "Item": {"type": "string"}}),
        b=a_document("/api/v1/b", {"Page": page, "Item": {"type": "number"}}),
    )
    schemas = document["components"]["schemas"]
    assert schemas["Page"] == page
    assert schemas["BPage"]["properties"]["item"] == {"$ref": "#/components/schemas/BItem"}
    assert ref_of(document, "/api/v1/b") == "BPage"


def test_what_is_not_public_is_left_out_and_the_sources_stay_as_they_were() -> None:
    source = a_document("/internal/v1/a", {"Page": {"type": "object"}})
    assert merged(a=source)["paths"] == {}
    source = a_document("/api/v1/a", {"Page": {"type": "object"}})
    merged(b=a_document("/api/v1/b", {"Page": {"type": "array"}}), a=source)
    assert source == a_document("/api/v1/a", {"Page": {"type": "object"}})


def test_an_operation_is_summed_up_by_the_first_words_of_its_description() -> None:
    source = a_document("/api/v1/a", {"Page": {"type": "object"}})
    operation = source["paths"]["/api/v1/a"]["get"]
    operation["summary"] = "Get"
    operation["description"] = "Return what there is,\nall of it. At once.\n\nNewest first.\n"
    shown = merged(a=source)["paths"]["/api/v1/a"]["get"]
    assert shown["summary"] == "Return what there is, all of it"
    assert shown["description"] == "At once.\n\nNewest first."
    operation["description"] = "Return it."
    shown = merged(a=source)["paths"]["/api/v1/a"]["get"]
    assert (shown["summary"], "description" in shown) == ("Return it", False)
    del operation["description"]
    assert merged(a=source)["paths"]["/api/v1/a"]["get"]["summary"] == "Get"


def test_which_operation_keeps_its_name_does_not_change_from_run_to_run() -> None:
    methods = ["trace", "patch", "head", "options", "delete", "post", "put", "get"]
    item = {method: {"operationId": "same"} for method in methods}
    document = merged(a={"paths": {"/api/v1/a": item}})
    ids = {m: o["operationId"] for m, o in document["paths"]["/api/v1/a"].items()}
    assert ids.pop("get") == "same"
    assert set(ids.values()) == {"a_same"}


def test_tags_stand_in_the_order_in_which_one_learns_the_api() -> None:
    document = merged(
        a=a_document("/api/v1/a", {"A": {"type": "object"}}),
        alerts=a_document("/api/v1/b", {"B": {"type": "object"}}, "b"),
        auth=a_document("/api/v1/c", {"C": {"type": "object"}}, "c"),
    )
    assert [tag["name"] for tag in document["tags"]] == ["auth", "alerts", "a"]
    assert document["tags"][0]["description"] == TAGS["auth"]
