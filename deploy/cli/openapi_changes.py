"""What of a new OpenAPI document would break clients of the one before.

Clients send what the old document lets them, and read what it promises. So what may be sent may
only grow, what is answered may only shrink in its choices and grow in its fields. Where we cannot
tell (a pattern that was rewritten), it counts as a break: the released document can be written
anew with `iiot openapi --write --force`, by somebody who knows better.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]
Schema = Mapping[str, Any]

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
# Bounds of what is sent: what is smaller than before refuses what was taken.
_AT_MOST = ("maxLength", "maximum", "exclusiveMaximum", "maxItems", "maxProperties")
_AT_LEAST = ("minLength", "minimum", "exclusiveMinimum", "minItems", "minProperties")
_EXACT = ("pattern", "multipleOf", "uniqueItems", "format")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference that a client may notice."""

    where: str
    what: str
    is_break: bool = True
    """False: a warning. Clients that expect the unexpected go on."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def breaks(old: Document, new: Document) -> list[Change]:
    """Return what is no mere addition, in the order of the old document."""
    return list(_Comparison(old, new).changes())


class _Comparison:
    def __init__(self, old: Document, new: Document) -> None:
        self._old = old
        self._new = new

    def changes(self) -> Iterator[Change]:
        for path, item in self._old["paths"].items():
            if path not in self._new["paths"]:
                yield Change(path, "the path is gone")
                continue
            for method in _METHODS:
                if method not in item:
                    continue
                where = f"{method.upper()} {path}"
                if method not in self._new["paths"][path]:
                    yield Change(where, "the method is gone")
                    continue
                yield from self._operation(where, item[method], self._new["paths"][path][method])

    def _operation(self, where: str, old: Document, new: Document) -> Iterator[Change]:
        if old.get("operationId") != new.get("operationId"):
            yield Change(where, f"is called {new.get('operationId')!r}, no longer {old.get('operationId')!r}")  # fmt: skip
        before, now = old.get("x-permission"), new.get("x-permission")
        if before != now:
            yield Change(where, f"needs the permission {now}, no longer {before}")
        yield from self._parameters(where, old, new)
        yield from self._request(where, old, new)
        yield from self._responses(where, old, new)

    def _parameters(self, where: str, old: Document, new: Document) -> Iterator[Change]:
        before, now = _parameters_of(old), _parameters_of(new)
        for key, parameter in before.items():
            name = f"{where} {parameter['in']} {parameter['name']!r}"
            if key not in now:
                yield Change(name, "the parameter is gone")
                continue
            if now[key].get("required") and not parameter.get("required"):
                yield Change(name, "is required now")
            yield from self._sent(name, parameter["schema"], now[key]["schema"], frozenset())
        for key, parameter in now.items():
            if key not in before and parameter.get("required"):
                yield Change(f"{where} {parameter['in']} {parameter['name']!r}", "is new and required")  # fmt: skip

    def _request(self, where: str, old: Document, new: Document) -> Iterator[Change]:
        before, now = old.get("requestBody"), new.get("requestBody")
        if before is None:
            if now is not None and now.get("required"):
                yield Change(where, "a body is required now")
            return
        if now is None:
            yield Change(where, "takes no body any more")
            return
        if now.get("required") and not before.get("required"):
            yield Change(where, "the body is required now")
        for media_type, content in before["content"].items():
            if media_type not in now["content"]:
                yield Change(where, f"does not take {media_type} any more")
                continue
            yield from self._sent(
                f"{where} body",
                content.get("schema", {}),
                now["content"][media_type].get("schema", {}),
                frozenset(),
            )

    def _responses(self, where: str, old: Document, new: Document) -> Iterator[Change]:
        now = new["responses"]
        for status, response in old["responses"].items():
            if status not in now:
                # An error that does not come any more harms nobody.
                if status.startswith("2"):
                    yield Change(where, f"does not answer {status} any more")
                continue
            before = _resolved(self._old, response).get("content", {})
            after = _resolved(self._new, now[status]).get("content", {})
            for media_type, content in before.items():
                if media_type not in after:
                    yield Change(f"{where} {status}", f"is not {media_type} any more")
                    continue
                yield from self._given(
                    f"{where} {status}",
                    content.get("schema", {}),
                    after[media_type].get("schema", {}),
                    frozenset(),
                )

    # What clients send: the new must take all that the old took.

    def _sent(
        self, where: str, old: Schema, new: Schema, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        pair = (str(old.get("$ref")), str(new.get("$ref")))
        if pair in seen:
            return
        seen = seen | {pair} if "$ref" in old else seen
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if _choices(old) is not None or _choices(new) is not None:
            yield from self._choices_sent(where, old, new, seen)
            return
        types = _types(old) - _types(new)
        if _types(new) and (types or not _types(old)):
            yield Change(where, f"was {_named(old)}, is {_named(new)}")
            return
        if lost := _values(old) - _values(new):
            yield Change(where, f"does not take {', '.join(sorted(lost))} any more")
        elif "enum" in new and "enum" not in old and "const" not in old:
            yield Change(where, "takes some values alone")
        yield from _narrowed(where, old, new)
        yield from self._fields_sent(where, old, new, seen)
        if "items" in old and "items" in new:
            yield from self._sent(f"{where}[]", old["items"], new["items"], seen)

    def _fields_sent(
        self, where: str, old: Schema, new: Schema, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        before, now = old.get("properties", {}), new.get("properties", {})
        is_closed = new.get("additionalProperties") is False
        if is_closed and old.get("additionalProperties") is not False and before:
            yield Change(where, "does not take further fields any more")
        for name in before:
            if name not in now:
                if is_closed:
                    yield Change(f"{where}.{name}", "the field is gone")
                continue
            yield from self._sent(f"{where}.{name}", before[name], now[name], seen)
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield Change(f"{where}.{name}", "is required now")

    def _choices_sent(
        self, where: str, old: Schema, new: Schema, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        now = _choices(new) or [new]
        for choice in _choices(old) or [old]:
            found = [list(self._sent(where, choice, candidate, seen)) for candidate in now]
            if all(found):
                yield min(found, key=len)[0]

    # What clients read: the new must give nothing that the old did not promise.

    def _given(
        self, where: str, old: Schema, new: Schema, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        pair = (str(old.get("$ref")), str(new.get("$ref")))
        if pair in seen:
            return
        seen = seen | {pair} if "$ref" in old else seen
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if _choices(old) is not None or _choices(new) is not None:
            yield from self._choices_given(where, old, new, seen)
            return
        types = _types(new) - _types(old)
        if _types(old) and (types or not _types(new)):
            yield Change(where, f"was {_named(old)}, is {_named(new)}")
            return
        if "enum" in old or "const" in old:
            if "enum" not in new and "const" not in new:
                yield Change(where, "may be anything now", is_break=False)
            for value in sorted(_values(new) - _values(old)):
                yield Change(where, f"may be {value} now", is_break=False)
        if old.get("format") != new.get("format"):
            yield Change(where, f"its format was {old.get('format')}, is {new.get('format')}")
        before, now = old.get("properties", {}), new.get("properties", {})
        for name in before:
            if name not in now:
                yield Change(f"{where}.{name}", "the field is gone")
                continue
            yield from self._given(f"{where}.{name}", before[name], now[name], seen)
        for name in sorted(set(old.get("required", ())) - set(new.get("required", ()))):
            if name in now:
                yield Change(f"{where}.{name}", "may be missing now")
        if "items" in old and "items" in new:
            yield from self._given(f"{where}[]", old["items"], new["items"], seen)

    def _choices_given(
        self, where: str, old: Schema, new: Schema, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        before = _choices(old) or [old]
        for choice in _choices(new) or [new]:
            found = [list(self._given(where, candidate, choice, seen)) for candidate in before]
            if all(found):
                yield min(found, key=len)[0]


def _parameters_of(operation: Document) -> dict[tuple[str, str], Document]:
    return {
        (p["in"], p["name"].lower() if p["in"] == "header" else p["name"]): p
        for p in operation.get("parameters", ())
    }


def _resolved(document: Document, part: Schema) -> Schema:
    while "$ref" in part:
        node: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            node = node[step]
        part = node
    return part


def _choices(schema: Schema) -> list[Schema] | None:
    return schema.get("anyOf") or schema.get("oneOf")


def _types(schema: Schema) -> set[str]:
    kind = schema.get("type")
    if kind is None:
        return set()
    kinds = {kind} if isinstance(kind, str) else set(kind)
    # A number may be an integer.
    return kinds | {"integer"} if "number" in kinds else kinds


def _named(schema: Schema) -> str:
    return " or ".join(sorted(_types(schema) - ({"integer"} if "number" in _types(schema) else set()))) or "anything"  # fmt: skip


def _values(schema: Schema) -> set[str]:
    return {repr(v) for v in ([schema["const"]] if "const" in schema else schema.get("enum", ()))}


def _narrowed(where: str, old: Schema, new: Schema) -> Iterator[Change]:
    for bound in _AT_MOST:
        if bound in new and (bound not in old or new[bound] < old[bound]):
            yield Change(where, f"{bound} was {old.get(bound, 'none')}, is {new[bound]}")
    for bound in _AT_LEAST:
        if bound in new and new[bound] > old.get(bound, 0 if bound.startswith("min") and bound != "minimum" else float("-inf")):  # fmt: skip
            yield Change(where, f"{bound} was {old.get(bound, 'none')}, is {new[bound]}")
    for rule in _EXACT:
        if rule in new and new[rule] != old.get(rule):
            yield Change(where, f"{rule} was {old.get(rule, 'none')}, is {new[rule]}")
