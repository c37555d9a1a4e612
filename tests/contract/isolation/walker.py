"""Walks every operation of an OpenAPI document as tenant A, who holds ids of tenant B.

The answers must be those that ids get which never existed. What is asked is made from the document
alone, so that an operation is walked on the day it is added; a parameter that may name something
and is not known here is a fault, and so is an operation that A cannot use on its own things.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx2

Document = dict[str, Any]
"""OpenAPI, or a part of it: JSON."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_PASSING = {"date", "x-request-id", "content-length", "ratelimit", "ratelimit-policy"}
"""Headers that differ from request to request. (What content-length tells is in the body.)"""
_RANDOM = {
    *("request_id", "token", "access_token", "refresh_token", "ticket", "secret"),
    *("key", "handle"),
}
"""Fields of answers that differ from request to request."""


@dataclass(frozen=True, slots=True)
class Territory:
    """What is walked, and what is whose.

    `kinds`: what kind of thing a parameter or field names. `mine` makes a new thing of A's, by
    kind; `theirs` are things of B's. `fields`: fit values for other parameters and fields, where
    the schema does not say enough. `canaries`: text that only B's things hold. `credential` says
    who A is. `fingerprint`: of all B's rows, by table. `public`: operations for anyone, and why.
    `refused`: operations that refuse A's own with a status of their own, which no foreign thing gets.
    """

    http: httpx2.AsyncClient
    document: Document
    credential: Callable[[str], Awaitable[dict[str, str]]]
    kinds: Mapping[str, str]
    mine: Mapping[str, Callable[[], Awaitable[str]]]
    theirs: Mapping[str, str]
    canaries: frozenset[str]
    fingerprint: Callable[[], Awaitable[dict[str, str]]]
    fields: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    public: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request."""

    method: str
    path: str
    query: dict[str, Any]
    body: Any
    sent: frozenset[str]
    """The ids in it."""


@dataclass(frozen=True, slots=True)
class _Operation:
    method: str
    path: str
    described: Document

    @property
    def name(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def is_public(self) -> bool:
        return self.described.get("security") == []


async def walk(land: Territory) -> list[str]:
    """Return every leak that was found; none on a sound platform."""
    faults: list[str] = []
    before = await land.fingerprint()
    for operation in operations(land.document):
        found = [f async for f in _Walk(land, operation).faults()]
        after = await land.fingerprint()
        changed = sorted(t for t in before.keys() | after if before.get(t) != after.get(t))
        if changed:
            found.append(f"B's rows changed in {', '.join(changed)}")
            before = after
        faults += [f"{operation.name}: {fault}" for fault in found]
    return faults


def operations(document: Document) -> Iterator[_Operation]:
    """Return the document's operations: first those that read, last those that remove.

    (What A writes with B's ids in it is A's own, and would be found by reading.)
    """
    found = [
        _Operation(method, path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
        if method in {"get", "post", "put", "patch", "delete"}
    ]
    yield from sorted(found, key=lambda o: (o.method != "get", o.method == "delete"))


class _Walk:
    """One operation's walk."""

    def __init__(self, land: Territory, operation: _Operation) -> None:
        self._land = land
        self._operation = operation
        self._unmapped: set[str] = set()

    async def faults(self) -> AsyncIterator[str]:
        land, operation = self._land, self._operation
        names = self._names()
        for name in sorted(self._unmapped):
            yield f"the parameter {name!r} is not known: what kind of thing does it name?"
        if self._unmapped:
            return
        if operation.is_public and operation.name not in land.public:
            yield "is open to anyone, and no reason is listed"
        kinds = {name: land.kinds[name] for name in names}

        async def mine() -> dict[str, str]:
            return {name: await land.mine[kind]() for name, kind in kinds.items()}

        headers = {} if operation.is_public else await land.credential(operation.name)
        if not operation.is_public:
            nobody = await self._send(self._ask(await mine()), {})
            if nobody.status_code != 401:
                yield f"without a credential it answers {nobody.status_code}, not 401"
        for name, kind in kinds.items():
            theirs, unknown = land.theirs[kind], _never_existed(land.theirs[kind])
            asked = [self._ask({**await mine(), name: value}) for value in (theirs, unknown)]
            answers = [await self._send(ask, headers) for ask in asked]
            seen = [_reading(answer, ask.sent) for answer, ask in zip(answers, asked, strict=True)]
            if seen[0] != seen[1]:
                yield f"{name} of B's gives {seen[0]}, one that never was gives {seen[1]}"
            for answer, ask in zip(answers, asked, strict=True):
                for canary in self._canaries(answer, ask.sent):
                    yield f"with {name} of B's, the answer holds B's {canary!r}"
        ask = self._ask(await mine())
        answer = await self._send(ask, headers)
        is_admins = operation.described.get("x-permission") == "platform:admin"
        if is_admins:
            if answer.status_code != 403:
                yield f"is for the platform's admins, and answers A {answer.status_code}"
        elif operation.name in land.refused:
            if answer.status_code != land.refused[operation.name]:
                yield f"A's own gives {answer.status_code}, not {land.refused[operation.name]}"
        elif answer.status_code >= 400 and not operation.is_public:
            yield f"A's own gives {answer.status_code} {answer.text[:300]}: nothing is proved"
        for canary in self._canaries(answer, ask.sent):
            yield f"the answer to A's own holds B's {canary!r}"

    def _names(self) -> list[str]:
        """Return the parameters and fields that name things."""
        names: set[str] = set()
        for parameter in self._operation.described.get("parameters", []):
            name = parameter["name"]
            in_path = parameter["in"] == "path"
            is_plain = name in self._land.fields and self._placed(name) not in self._land.kinds
            if (in_path and not is_plain) or _names_a_thing(parameter["schema"]):
                names.add(self._known(name))
        self._body(dict.fromkeys(self._land.kinds, ""), names)
        return sorted(names & self._land.kinds.keys())

    def _placed(self, name: str) -> str:
        return f"{self._operation.path}#{name}"

    def _special(self, name: str) -> str:
        return f"{self._operation.name}#{name}"

    def _known(self, name: str) -> str:
        """Return under what a name is known; of a name that is everybody's, with its place."""
        if self._placed(name) in self._land.kinds:
            return self._placed(name)
        if name not in self._land.kinds:
            self._unmapped.add(name)
        return name

    def _ask(self, ids: Mapping[str, str]) -> Ask:
        path, query = self._operation.path, {}
        for parameter in self._operation.described.get("parameters", []):
            name, schema = parameter["name"], parameter["schema"]
            value: Any = ids.get(self._placed(name), ids.get(name))
            if value is None and parameter["in"] == "path":
                value = self._land.fields[name]()
            elif value is None and parameter.get("required"):
                value = self._value(name, schema, ids, set())
            if value is None:
                continue
            if parameter["in"] == "path":
                path = path.replace("{" + name + "}", str(value))
            elif parameter["in"] == "query":
                query[name] = value
        body = self._body(ids, set())
        return Ask(self._operation.method, path, query, body, frozenset(ids.values()))

    def _body(self, ids: Mapping[str, str], names: set[str]) -> Any:
        content = self._operation.described.get("requestBody", {}).get("content", {})
        if "text/csv" in content and "application/json" not in content:
            return self._land.fields[self._special("")]()
        if "application/json" not in content:
            return None
        return self._value("", content["application/json"]["schema"], ids, names)

    def _value(self, name: str, schema: Document, ids: Mapping[str, str], names: set[str]) -> Any:
        """Return a value that fits a schema; add to `names` the fields that name things."""
        if (special := self._land.fields.get(self._special(name))) is not None:
            return special()
        schema = self._resolved(schema)
        if schema.get("type") == "array" and _names_a_thing(schema):
            return [self._value(name, schema["items"], ids, names)]
        if _names_a_thing(schema) or self._placed(name) in self._land.kinds:
            known = self._known(name)
            names.add(known)
            return ids.get(known, str(uuid4()))
        if fit := self._land.fields.get(name):
            return fit()
        if "const" in schema or "enum" in schema:
            return schema.get("const", (schema.get("enum") or [None])[0])
        match schema.get("type"):
            case "object":
                required = schema.get("required", [])
                return {
                    key: value
                    for key, inner in schema.get("properties", {}).items()
                    if key in required
                    or self._special(key) in self._land.fields
                    or self._holds_a_name(inner)
                    for value in [self._value(key, inner, ids, names)]
                }
            case "array":
                return [self._value(name, schema["items"], ids, names)]
            case "string" if schema.get("format") == "date-time":
                return datetime.now(UTC).isoformat()
            case "string":
                return f"walk {uuid4()}"
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return True
        return None

    def _resolved(self, schema: Document) -> Document:
        """Follow references; of alternatives take the first that says something."""
        while True:
            if "$ref" in schema:
                node: Document = self._land.document
                for part in schema["$ref"].removeprefix("#/").split("/"):
                    node = node[part]
                schema = node
            elif choices := (schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")):
                schema = next(c for c in choices if c.get("type") != "null")
            else:
                return schema

    def _holds_a_name(self, schema: Document) -> bool:
        schema = self._resolved(schema)
        if schema.get("type") == "array":
            return self._holds_a_name(schema["items"])
        return _names_a_thing(schema) or any(
            self._holds_a_name(inner) for inner in schema.get("properties", {}).values()
        )

    async def _send(self, ask: Ask, headers: dict[str, str]) -> httpx2.Response:
        body: dict[str, Any] = {} if ask.body is None else {"json": ask.body}
        if isinstance(ask.body, str):
            body = {"content": ask.body}
            headers = {**headers, "content-type": "text/csv"}
        return await self._land.http.request(
            ask.method, ask.path, params=ask.query, headers=headers, **body
        )

    def _canaries(self, answer: httpx2.Response, sent: frozenset[str]) -> list[str]:
        text = _plain(answer.text + str(answer.headers), sent, all_ids=False)
        canaries = self._land.canaries | set(self._land.theirs.values())
        return sorted(canary for canary in canaries if canary in text)


def _names_a_thing(schema: Document) -> bool:
    choices = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
    return any(
        c.get("format") == "uuid" or c.get("items", {}).get("format") == "uuid" for c in choices
    )


def _never_existed(like: str) -> str:
    """Return an id as long as another, so that answers are as long too."""
    return _UUID.sub(lambda _: str(uuid4()), like)


def _reading(answer: httpx2.Response, sent: frozenset[str]) -> tuple[int, str, str]:
    """Return status, body and headers, without what differs from request to request."""
    headers = {k: v for k, v in answer.headers.items() if k.lower() not in _PASSING}
    try:
        text = json.dumps(_steady(answer.json()), sort_keys=True)
    except ValueError:
        text = answer.text
    return answer.status_code, _plain(text, sent), _plain(json.dumps(headers, sort_keys=True), sent)


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "…" if k in _RANDOM else _steady(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return value


def _plain(text: str, sent: frozenset[str], *, all_ids: bool = True) -> str:
    for value in sorted(sent, key=len, reverse=True):
        text = text.replace(value, "<id>")
    if not all_ids:
        return text
    return _MOMENT.sub("<moment>", _UUID.sub("<id>", text))
