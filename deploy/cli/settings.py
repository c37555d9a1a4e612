"""The .env.example: every setting of every service, from the classes that read them."""

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from libs.common.db.roles import SERVICES
from libs.common.settings import ServiceSettings

HEAD = """\
# Every setting of the platform, with its default. Written by `python -m deploy.cli settings --write`.
#
# Copy to .env what you change; docker compose reads that file. Every setting can also be a file: of
# the same name in lower case, in /run/secrets or in the folder that IIOT_SECRETS_DIR names. What is
# marked secret belongs there (`python3 -m deploy.secrets` makes them); the environment wins.
# Durations are ISO 8601: PT0.5S, PT15M, P7D.
"""

COMPOSE = """\
## docker compose

# Which version of the images is built and run.
#IIOT_TAG=latest
# The folder of the secrets.
#IIOT_SECRETS=./secrets
# Where people reach the platform: a port, or address:port.
#GATEWAY_PUBLISH=8000
# Where devices reach it by MQTT.
#MQTT_PUBLISH=1883
# Where devices reach it by CoAP (UDP).
#COAP_PUBLISH=5683
# Where they reach it by OPC UA.
#OPCUA_PUBLISH=4840
# By MQTT over TLS, with deploy/compose.mqtt-tls.yml.
#MQTT_TLS_PUBLISH=8883
# By AMQP, with deploy/compose.amqp.yml.
#AMQP_PUBLISH=5672
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people see it. `default` is None where there is none to give."""

    name: str
    kind: str
    default: str | None
    required: bool
    meaning: str


def example() -> str:
    """Return the whole file."""
    from deploy.cli.migrate import Settings as MigrateSettings

    seen: set[str] = set()
    parts = [HEAD, COMPOSE]
    sections: list[tuple[str, type[BaseSettings]]] = [
        ("all services", ServiceSettings),
        *((service, settings) for service, settings in settings_classes().items()),
        ("migration", MigrateSettings),
    ]
    for title, settings in sections:
        if title == "all services":
            # Those that every service reads under its own prefix are named with the services.
            listed = [s for s, shared in _settings_of(settings) if shared]
        else:
            listed = [s for s, _ in _settings_of(settings) if s.name not in seen]
        seen |= {setting.name for setting in listed}
        text = "".join(map(_lines, listed)).replace("<service>", title)
        parts.append(f"## {title}\n\n{text}")
    return "\n".join(parts)


def missing_services() -> list[str]:
    """Return the services whose settings are not to be found."""
    return [name for name in SERVICES if find_spec(f"services.{name}.settings") is None]


def settings_classes() -> dict[str, type[BaseSettings]]:
    """Return the settings class of every service that has one."""
    return {
        service: import_module(f"services.{service}.settings").Settings
        for service in SERVICES
        if service not in missing_services()
    }


def settings_of(settings: type[BaseSettings]) -> list[Setting]:
    """Return a class's settings, in the order they are written."""
    return [setting for setting, _ in _settings_of(settings)]


def _settings_of(settings: type[BaseSettings]) -> Iterator[tuple[Setting, bool]]:
    """Yield each setting, and whether it answers to the same name in all services."""
    meanings = _meanings(settings)
    prefix = str(settings.model_config.get("env_prefix", ""))
    for name, field in settings.model_fields.items():
        shared = isinstance(field.validation_alias, str)
        yield (
            Setting(
                name=str(field.validation_alias) if shared else f"{prefix}{name}".upper(),
                kind=", ".join([_kind(field.annotation), *_limits(field)]),
                default=_default(field),
                required=field.is_required(),
                meaning=meanings.get(name, ""),
            ),
            shared,
        )


def _lines(setting: Setting) -> str:
    note = f"[{setting.kind}]" if not setting.required else f"[{setting.kind}; required]"
    comment = textwrap.fill(
        f"{setting.meaning} {note}".strip(),
        width=100,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"{textwrap.indent(comment, '# ')}\n#{setting.name}={setting.default or ''}\n"


def _meanings(settings: type) -> dict[str, str]:
    """Return the strings that stand below the attributes, by attribute, bases included."""
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        if not issubclass(base, BaseModel) or base in (BaseModel, BaseSettings):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            match statement, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(inspect.cleandoc(text).split())
    return found


def _kind(annotation: object) -> str:
    """Return what a value looks like, in a few words."""
    simple: Mapping[object, str] = {
        SecretStr: "secret",
        str: "text",
        bool: "true or false",
        int: "whole number",
        float: "number",
        timedelta: "duration",
        Path: "path",
    }
    if annotation in simple:
        return simple[annotation]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation) if part is not type(None))
    if origin is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    if origin is dict and SecretStr in get_args(annotation):
        return "secret, JSON"
    return "list" if origin is frozenset else "JSON"


def _limits(field: FieldInfo) -> list[str]:
    limits = []
    for limit in field.metadata:
        match limit:
            case Ge(ge=bound):
                limits.append(f"at least {_as_text(bound)}")
            case Gt(gt=bound):
                limits.append(f"more than {_as_text(bound)}")
            case Le(le=bound):
                limits.append(f"at most {_as_text(bound)}")
            case Lt(lt=bound):
                limits.append(f"less than {_as_text(bound)}")
    return limits


def _default(field: FieldInfo) -> str | None:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None:
        return None
    if isinstance(value, frozenset) and not value:
        return None
    return _as_text(value)


def _as_text(value: object) -> str:
    """Return a value as it would be written in an .env file."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case timedelta():
            return _duration(value)
        case str() | int() | float() | Path():
            return str(value)
        case _:
            return json.dumps(TypeAdapter(type(value)).dump_python(value, mode="json"))


def _duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    if seconds and seconds % 86_400 == 0:
        return f"P{int(seconds // 86_400)}D"
    if seconds and seconds % 3_600 == 0:
        return f"PT{int(seconds // 3_600)}H"
    if seconds and seconds % 60 == 0:
        return f"PT{int(seconds // 60)}M"
    return f"PT{seconds:g}S"
