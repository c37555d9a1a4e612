"""One OpenAPI document out of those of all services."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from services.gateway.domain.tags import TAGS

Document = dict[str, Any]
"""A parsed OpenAPI document; it has no closed shape."""

_SENTENCE_END = re.compile(r"\. (?=[A-Z`])")
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_SECTIONS = ("schemas", "responses", "parameters", "examples", "requestBodies", "headers", "links")


def merge(
    documents: Mapping[str, Document], *, title: str, version: str, description: str
) -> Document:
    """Return one OpenAPI 3.1 document with the public paths of all services, in the order given.

    A component that two services define differently, and an operationId that two use, get the
    service's name in front, from the second on. Only paths below /api/ are public. The first
    sentence of an operation's description becomes its summary, in place of its function's name.
    Tags stand in the order of TAGS.
    """
    paths: dict[str, Any] = {}
    components: dict[str, dict[str, Any]] = {}
    operation_ids: set[str] = set()
    used: dict[str, None] = {}
    for service, document in documents.items():
        renamed = _add_components(components, service, document.get("components", {}))
        for path, described in document.get("paths", {}).items():
            if not path.startswith("/api/"):
                continue
            item = _with_refs(described, renamed)
            for method in _METHODS:
                operation = item.get(method)
                if operation is None:
                    continue
                _summarise(operation)
                wanted = operation.get("operationId")
                if wanted is not None:
                    operation["operationId"] = _unique(wanted, service, operation_ids)
                operation.setdefault("tags", [service])
                used |= dict.fromkeys(operation["tags"])
            paths.setdefault(path, {}).update(item)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "servers": [{"url": "/"}],
        "tags": _described_tags(used),
        "paths": paths,
        "components": components,
    }


def _described_tags(used: Iterable[str]) -> list[dict[str, str]]:
    known = [{"name": t, "description": text} for t, text in TAGS.items() if t in set(used)]
    return known + [{"name": tag} for tag in used if tag not in TAGS]


def _summarise(operation: Document) -> None:
    first, _, rest = operation.pop("description", "").strip().partition("\n\n")
    summary, more = _first_sentence(" ".join(first.split()))
    if summary:
        operation["summary"] = summary
    said = "\n\n".join(part for part in (more, rest.strip()) if part)
    if said:
        operation["description"] = said


def _first_sentence(text: str) -> tuple[str, str]:
    """Return a text's first sentence without its full stop, and what follows."""
    end = _SENTENCE_END.search(text)
    if end is None:
        return text.removesuffix("."), ""
    return text[: end.start()], text[end.end() :]


def _unique(name: str, service: str, taken: set[str]) -> str:
    if name in taken:
        name = f"{service}_{name}"
    taken.add(name)
    return name


def _add_components(
    merged: dict[str, dict[str, Any]], service: str, components: Document
) -> dict[str, str]:
    """Add a service's components; return the references that changed, old to new."""
    renamed: dict[str, str] = {}
    while True:
        # A component that is the same in words differs if what it refers to was renamed.
        before = len(renamed)
        for section in _SECTIONS:
            present = merged.get(section, {})
            for name, component in components.get(section, {}).items():
                if name in present and present[name] != _with_refs(component, renamed):
                    place = f"#/components/{section}/"
                    renamed[place + name] = f"{place}{service.capitalize()}{name}"
        if len(renamed) == before:
            break
    for section, added in components.items():
        target = merged.setdefault(section, {})
        for name, component in added.items():
            reference = f"#/components/{section}/{name}"
            new_name = renamed.get(reference, reference).rpartition("/")[2]
            placed = _with_refs(component, renamed)
            if new_name != name and placed.get("title") == name:
                # Generators of clients name classes by it.
                placed["title"] = new_name
            target.setdefault(new_name, placed)
    return renamed


def _with_refs(part: Any, renamed: Mapping[str, str]) -> Any:
    """Return a deep copy with the references replaced."""
    if isinstance(part, dict):
        return {
            key: renamed.get(value, value)
            if key == "$ref" and isinstance(value, str)
            else _with_refs(value, renamed)
            for key, value in part.items()
        }
    if isinstance(part, list):
        return [_with_refs(item, renamed) for item in part]
    if isinstance(part, str):
        # A discriminator maps to references as plain values.
        return renamed.get(part, part)
    return part
