"""The API's description tells integrators everything: of every operation, of every service."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import OpenAPIV31SpecValidator

from deploy.cli.main import RELEASED
from deploy.cli.openapi import document as described
from deploy.cli.openapi_changes import breaks
from libs.common.http.examples import Examples, NoExample

Document = dict[str, Any]

PROBLEM = "application/problem+json"
EVERYWHERE = {"400", "422", "429", "503"}
"""Anybody may send what cannot be read, or too much; and what we stand on may be away."""
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")


@pytest.fixture(scope="module")
def document() -> Document:
    return described()


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield f"{method.upper()} {path}", item[method]


def resolved(document: Document, part: Document) -> Document:
    while "$ref" in part:
        node: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            node = node[step]
        part = node
    return part


def answers(document: Document, operation: Document) -> Iterator[tuple[str, Document]]:
    for status, response in operation["responses"].items():
        yield status, resolved(document, response)


def missing(document: Document, operation: Document) -> Iterator[str]:
    """Say what the description of an operation lacks."""
    if not operation.get("summary") or len(operation["summary"]) > 120:
        yield "a summary: the first sentence of its docstring, 120 characters at most"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", operation.get("operationId", "")):
        yield "an operationId"
    tags = {tag["name"] for tag in document["tags"] if tag.get("description")}
    yield from (
        f"a description of the tag {tag!r} (services/gateway/domain/tags.py)"
        for tag in operation["tags"]
        if tag not in tags
    )
    is_guarded = operation.get("security") != []
    if is_guarded and not operation.get("x-permission"):
        yield "its permission"
    expected = set(EVERYWHERE)
    if is_guarded:
        expected |= {"401", "403"}
    if "requestBody" in operation:
        expected |= {"413", "415"}
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", ())):
        expected |= {"404"}
    if any(
        parameter["name"].lower() == "if-match" for parameter in operation.get("parameters", ())
    ):
        expected |= {"412"}
    yield from (f"the answer {s}" for s in sorted(expected - operation["responses"].keys()))
    for status, answer in answers(document, operation):
        for header in ("X-Request-Id", "RateLimit", "RateLimit-Policy"):
            if header not in answer.get("headers", {}):
                yield f"the header {header} of {status}"
        if status in ("429", "503") and "Retry-After" not in answer["headers"]:
            yield f"the header Retry-After of {status}"
        if status in ("200", "201") and not answer.get("content"):
            yield f"what {status} holds"
        if status[0] in "45" and not answer["content"].get(PROBLEM, {}).get("examples"):
            yield f"an example of the problem {status}"
        yield from _without_example(document, answer.get("content", {}), status)
    yield from _without_example(
        document, operation.get("requestBody", {}).get("content", {}), "its body"
    )


def _without_example(document: Document, content: Document, of: str) -> Iterator[str]:
    for media_type, said in content.items():
        # What is no text has no example that could be read.
        if said.keys() & {"example", "examples"} or "cbor" in media_type:
            continue
        try:
            Examples(document["components"]["schemas"]).of(said.get("schema", {}))
        except NoExample as none:
            yield f"an example of {of} as {media_type}: {none}"
        else:
            yield f"an example of {of} as {media_type}"


def test_the_document_is_valid_openapi_3_1(document: Document) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_says_all_there_is_to_know(document: Document) -> None:
    faults = [
        f"{name} lacks {fault}"
        for name, operation in operations(document)
        for fault in missing(document, operation)
    ]
    assert not faults, "\n".join(faults)


def test_a_careless_operation_is_found_out(document: Document) -> None:
    (described,) = (o for name, o in operations(document) if name == "POST /api/v1/devices")
    assert list(missing(document, described)) == []
    careless = json.loads(json.dumps(described))
    del careless["responses"]["403"], careless["x-permission"]
    del careless["responses"]["201"]["content"]["application/json"]["example"]
    careless["tags"], careless["summary"] = ["odds and ends"], ""
    assert len(list(missing(document, careless))) == 5


def test_texts_that_only_the_plant_knows_are_shown_by_example(document: Document) -> None:
    """A field of free text that shows nothing would read `string` in every client's manual."""
    faults = [
        f"{name}.{field} has no Field(examples=[...])"
        for name, schema in document["components"]["schemas"].items()
        for field, said in schema.get("properties", {}).items()
        if said.get("type") == "string"
        and not said.keys() & {"examples", "enum", "const", "format", "default"}
    ]
    assert not faults, "\n".join(faults)


def test_examples_are_what_the_schemas_ask_for(document: Document) -> None:
    faults = []
    for name, operation in operations(document):
        bodies = [operation.get("requestBody", {}), *(a for _, a in answers(document, operation))]
        for body in bodies:
            for media_type, content in body.get("content", {}).items():
                if not media_type.endswith("json"):
                    continue
                schema = {**content.get("schema", {}), "components": document["components"]}
                shown = [e["value"] for e in content.get("examples", {}).values()]
                for example in [*shown, *([content["example"]] if "example" in content else [])]:
                    validator = OAS31Validator(schema, format_checker=oas31_format_checker)
                    faults += [
                        f"{name} {media_type} {'/'.join(map(str, e.path))}: {e.message[:200]}"
                        for e in validator.iter_errors(example)
                    ]
    assert not faults, "\n".join(dict.fromkeys(faults))


def test_what_clients_were_promised_still_holds(document: Document) -> None:
    """Against docs/api/openapi-v1.json, which `iiot openapi --write` makes: docs/api-versioning.md."""
    released = json.loads(RELEASED.read_text())
    found = [str(change) for change in breaks(released, document) if change.is_break]
    assert not found, "this breaks clients of v1:\n" + "\n".join(found)
