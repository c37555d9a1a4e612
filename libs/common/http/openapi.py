"""What the OpenAPI document says of every operation beyond what FastAPI knows of it.

Who may call it, every error it may answer with, what its headers mean, an example of what it takes
and gives: derived in this one place from what the route has. The errors of the gateway, which
services know nothing of, are added where the documents become one (services/gateway/domain/openapi.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libs.common import errors
from libs.common.errors import AppError
from libs.common.http.access import Operation
from libs.common.http.deprecation import Deprecation, deprecation_of
from libs.common.http.examples import Examples, NoExample
from libs.common.http.problems import (
    MEDIA_TYPE,
    PROBLEM_HEADERS,
    PROBLEM_SCHEMA,
    problem_schemas,
    problems,
)

Document = dict[str, Any]

_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "The `access_token` that `POST /api/v1/auth/login` answers with, or an API key.",
}
_API_KEY = {
    "type": "apiKey",
    "in": "header",
    "name": "X-API-Key",
    "description": "A key that `POST /api/v1/api-keys` made, for programs.",
}

# What is no permission that a role holds, in words.
_WHO = {
    "session:own": "For whoever is logged in.",
    "device:itself": "For a device, which shows its own token.",
    "platform:admin": "For the platform's own administrators.",
}


def complete(document: Document, operations: Sequence[Operation]) -> None:
    """Add to a service's document what its operations say of themselves."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(problem_schemas())
    schemes = components.setdefault("securitySchemes", {})
    for operation, described in _described(document, operations):
        if operation.permission is None:
            described["security"] = []
        else:
            described["x-permission"] = operation.permission
            schemes["bearer"] = _BEARER
            ways: list[dict[str, list[str]]] = [{"bearer": []}]
            if operation.permission not in _WHO:
                schemes["api_key"] = _API_KEY
                ways.append({"api_key": []})
            described.setdefault("security", ways)
        _say_in_words(described, operation)
        _add_problems(described, operation)
        _add_examples(described, Examples(schemas))
    components["headers"] = dict(PROBLEM_HEADERS)


def _described(
    document: Document, operations: Sequence[Operation]
) -> Iterator[tuple[Operation, Document]]:
    paths = document.get("paths", {})
    for operation in operations:
        for method in operation.methods:
            described = paths.get(operation.path, {}).get(method.lower())
            if described is not None:
                yield operation, described


def _say_in_words(described: Document, operation: Operation) -> None:
    said = [described.get("description", "").strip()]
    if operation.permission is not None:
        said += [
            _WHO.get(permission, f"Needs the permission `{permission}`.")
            for permission in operation.permission.split(" ")
        ]
    ends: Deprecation | None = deprecation_of(getattr(operation.route, "endpoint", None))
    if ends is not None:
        described["deprecated"] = True
        said.append(ends.sentence)
    if any(said):
        described["description"] = "\n\n".join(part for part in said if part)


def kinds_of(described: Document, permission: str | None) -> list[type[AppError]]:
    """Return the kinds of error that an operation may answer with by its nature.

    Anybody may send what cannot be read (two credentials, U+0000 in the query). What it asks
    for beyond that, a conflict or a guess too many, is declared by the route itself.
    """
    kinds: list[type[AppError]] = [errors.Malformed, errors.Invalid]
    if permission is not None:
        kinds += [errors.Unauthenticated, errors.Forbidden]
    places = {parameter["in"] for parameter in described.get("parameters", ())}
    if "path" in places:
        kinds.append(errors.NotFound)
    if "If-Match" in {p["name"] for p in described.get("parameters", ())}:
        kinds.append(errors.PreconditionFailed)
    if "requestBody" in described:
        kinds += [errors.TooLarge, errors.UnsupportedMedia]
    return kinds


def add_problems(described: Document, kinds: Sequence[type[AppError]]) -> None:
    """Add answers to an operation that they may be given by; those it declares itself stay too."""
    responses = described.setdefault("responses", {})
    for status, added in problems(*kinds).items():
        present = responses.setdefault(str(status), added)
        content = present.setdefault("content", {})
        said_by_us = content.keys() <= {MEDIA_TYPE}
        problem = content.setdefault(MEDIA_TYPE, dict(PROBLEM_SCHEMA))
        examples = problem.setdefault("examples", {})
        examples |= added["content"][MEDIA_TYPE]["examples"]
        present["headers"] = {**added["headers"], **present.get("headers", {})}
        if said_by_us:
            titles = dict.fromkeys(example["summary"] for example in examples.values())
            present["description"] = " / ".join(titles)
    described["responses"] = dict(sorted(responses.items()))


def _add_problems(described: Document, operation: Operation) -> None:
    responses = described["responses"]
    # It stood in for all that is named now.
    responses.pop("default", None)
    add_problems(described, kinds_of(described, operation.permission))


def _add_examples(described: Document, examples: Examples) -> None:
    """Give each body of JSON that has no example one; where none can be made the contract test says so."""
    bodies = [described.get("requestBody", {}), *_successes(described)]
    for body in bodies:
        for media_type, content in body.get("content", {}).items():
            if not media_type.endswith("json") or "example" in content or "examples" in content:
                continue
            try:
                content["example"] = examples.of(content.get("schema", {}))
            except NoExample:
                continue


def _successes(described: Document) -> list[Document]:
    return [r for status, r in described["responses"].items() if status.startswith("2")]


def share_problems(document: Document) -> None:
    """Let each problem that operations answer with stand once, among the document's components."""
    shared = document["components"].setdefault("responses", {})
    for item in document["paths"].values():
        for described in item.values():
            for status, response in described["responses"].items():
                name = _name_of_problem(response)
                if name is not None and shared.setdefault(name, response) == response:
                    described["responses"][status] = {"$ref": f"#/components/responses/{name}"}


def _name_of_problem(response: Mapping[str, Any]) -> str | None:
    """Return the name of a problem, made of those of its kinds. None for other answers."""
    content = response.get("content", {})
    if content.keys() != {MEDIA_TYPE} or not content[MEDIA_TYPE].get("examples"):
        return None
    return "Or".join(content[MEDIA_TYPE]["examples"])
