"""Examples of bodies, put together from what the models' fields say of themselves.

A field says what it looks like with `Field(examples=["press-7"])`, a model as a whole with
`json_schema_extra={"examples": [...]}`; what a schema settles by itself (ids, times, choices,
numbers with a least value) needs nobody to say it.
"""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

_BY_FORMAT: Mapping[str, str] = {
    "uuid": "5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10",
    "date-time": "2026-11-21T12:00:00Z",
    "date": "2026-11-21",
    "time": "12:00:00Z",
    "duration": "PT5M",
    "email": "ann@plant.example",
    "password": "correct horse battery staple",
    "uri": "https://plant.example/",
}
_DEEPEST = 12


class NoExample(Exception):
    """A schema leaves open what a value looks like, and gives no example of one."""


class Examples:
    """Makes examples of the schemas of one OpenAPI document."""

    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self._schemas = schemas

    def of(self, schema: Schema) -> Any:
        """Return a value that fits the schema. Raises NoExample, saying where one is missing."""
        return self._value(schema, "", 0)

    def _value(self, schema: Schema, at: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise NoExample(f"{at or 'it'} is nested without end")
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            return self._value({**self._schemas[name], **beside}, at or name, depth + 1)
        if schema.get("examples"):
            return schema["examples"][0]
        for said in ("const", "default"):
            if schema.get(said) not in (None, "", [], {}):
                return schema[said]
        if "enum" in schema:
            return schema["enum"][0]
        if "allOf" in schema:
            return self._value({**schema["allOf"][0]}, at, depth + 1)
        choices = schema.get("anyOf") or schema.get("oneOf")
        if choices:
            return self._choice(choices, at, depth)
        return self._plain(schema, at, depth)

    def _choice(self, choices: list[Schema], at: str, depth: int) -> Any:
        may_be_null = any(choice.get("type") == "null" for choice in choices)
        first = next(choice for choice in choices if choice.get("type") != "null")
        try:
            return self._value(first, at, depth + 1)
        except NoExample:
            if may_be_null:
                return None
            raise

    def _mapping(self, schema: Schema, at: str, depth: int) -> Any:
        """Return an object whose keys are not given by name."""
        inner, names = schema.get("additionalProperties"), schema.get("propertyNames", {})
        if not isinstance(inner, Mapping) or not names.get("examples"):
            return {}
        return {names["examples"][0]: self._value(inner, f"{at}{{}}", depth + 1)}

    def _plain(self, schema: Schema, at: str, depth: int) -> Any:
        match schema.get("type"):
            case "object" | None if "properties" in schema:
                made = {
                    name: self._value(inner, f"{at}.{name}", depth + 1)
                    for name, inner in schema["properties"].items()
                }
                # Null means less than leaving it out, where one may.
                required = schema.get("required", ())
                return {n: value for n, value in made.items() if value is not None or n in required}
            case "object":
                return self._mapping(schema, at, depth)
            case "array":
                return [self._value(schema.get("items", {}), f"{at}[]", depth + 1)]
            case "boolean":
                return bool(schema.get("default", True))
            case "integer":
                return max(1, schema.get("minimum", 1), schema.get("exclusiveMinimum", 0) + 1)
            case "number":
                return min(max(21.5, schema.get("minimum", 21.5)), schema.get("maximum", 21.5))
            case "string" if schema.get("format") in _BY_FORMAT:
                return _BY_FORMAT[schema["format"]]
            case "string" if schema.get("default") == "":
                return ""
            case "null" | None:
                return None
            case _:
                raise NoExample(f"{at or 'the body'} needs an example")
