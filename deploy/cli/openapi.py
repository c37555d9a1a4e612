"""The API's description as a file, from the services' code alone: no server, no database."""

import copy
import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fastapi import FastAPI

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.roles import SERVICES
from libs.common.http.app import ServiceApp

# Nobody connects to it: an app that is built and not started describes itself all the same.
_NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def apps() -> Mapping[str, ServiceApp]:
    """Return every service's app, built and not started."""
    clock = SystemClock()
    bus = LocalBus(_NOWHERE, clock)
    made: dict[str, ServiceApp] = {}
    upstreams: dict[str, FastAPI] = {}
    for service in SERVICES:
        settings = import_module(f"services.{service}.settings").Settings
        needed = {n: _NOWHERE for n, field in settings.model_fields.items() if field.is_required()}
        more: dict[str, object] = {"upstreams": upstreams} if service == "gateway" else {}
        build = import_module(f"services.{service}.app").build
        made[service] = build(settings(**needed), bus, clock, **more)
    return made


def document() -> dict[str, Any]:
    """Return the document of the whole API, as the gateway gives it out."""
    from services.gateway.usecases.description import describe

    return describe({service: app.openapi() for service, app in apps().items()})


def as_text(described: Mapping[str, Any]) -> str:
    """Return a document as it is kept: readable, and the same whenever the API is."""
    return json.dumps(described, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def for_sdk(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document as generators of clients understand it: one way to say each thing.

    Of the media types that an operation takes, JSON is left where it is among them; where it takes
    one thing or a list of such, the list.
    """
    document: dict[str, Any] = copy.deepcopy(dict(described))
    for item in document["paths"].values():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" not in content:
                continue
            json_alone = content["application/json"]
            choices = json_alone.get("schema", {}).get("oneOf", ())
            lists = [choice for choice in choices if choice.get("type") == "array"]
            if lists:
                json_alone["schema"] = lists[0]
                # They show both.
                json_alone.pop("examples", None)
            operation["requestBody"]["content"] = {"application/json": json_alone}
    return document
