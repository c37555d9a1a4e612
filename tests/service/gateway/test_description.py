"""The merged description of the API, and the page that shows it."""

import copy
import json
import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel

from tests.service.gateway.conftest import World

DOCS = "/api/v1/docs"


def _devices() -> dict[str, Any]:
    class Page(BaseModel):
        devices: list[str]

    app = FastAPI(generate_unique_id_function=lambda route: route.name)

    @app.get("/api/v1/devices", tags=["devices"])
    async def list_all() -> Page:
        raise AssertionError

    @app.get("/internal/v1/devices")
    async def hidden() -> Page:
        raise AssertionError

    return app.openapi()


def _rules() -> dict[str, Any]:
    class Inner(BaseModel):
        rule: str

    class Page(BaseModel):
        rules: list[Inner]

    app = FastAPI(generate_unique_id_function=lambda route: route.name)

    @app.get("/api/v1/rules", tags=["rules"])
    async def list_all() -> Page:
        raise AssertionError

    return app.openapi()


async def _document(world: World) -> dict[str, Any]:
    answer = await world.http.get("/api/v1/openapi.json")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


async def test_the_document_is_openapi_3_1_with_unique_operations(world: World) -> None:
    services = world.upstreams
    services["ingest"].openapi = _devices()
    services["rules"].openapi = _rules()
    document = await _document(world)
    assert document["openapi"].startswith("3.1")
    OpenAPI.model_validate(copy.deepcopy(document))
    assert {"/api/v1/auth/login", "/api/v1/devices", "/api/v1/rules"} <= document["paths"].keys()
    assert not [p for p in document["paths"] if not p.startswith("/api/")]
    operations = [
        operation["operationId"]
        for item in document["paths"].values()
        for operation in item.values()
    ]
    assert len(operations) == len(set(operations))
    assert {"list_all", "rules_list_all"} <= set(operations)


async def test_components_that_differ_keep_apart_and_every_reference_leads_somewhere(
    world: World,
) -> None:
    services = world.upstreams
    services["ingest"].openapi = _devices()
    services["rules"].openapi = _rules()
    document = await _document(world)
    schemas = document["components"]["schemas"]
    assert schemas["Page"]["properties"].keys() == {"devices"}
    assert schemas["RulesPage"]["properties"].keys() == {"rules"}
    answer = document["paths"]["/api/v1/rules"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/RulesPage"
    }
    for reference in re.findall(r'"\$ref":\s*"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert reference in schemas


async def test_the_page_runs_nothing_of_strangers(world: World) -> None:
    page = await world.http.get(DOCS)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert not re.findall(r"(?:src|href)=\"(?!/)", page.text)
    assert "<script>" not in page.text
    for path in ("/api/docs", "/docs"):
        assert (await world.http.get(path)).headers["location"] == DOCS


@pytest.mark.parametrize(
    "asset", ["swagger-ui-bundle.js", "swagger-ui.css", "start.js", "page.css"]
)
async def test_the_pages_files_are_our_own(world: World, asset: str) -> None:
    answer = await world.http.get(f"{DOCS}/{asset}")
    assert answer.status_code == 200
    assert len(answer.content) > 100


async def test_no_other_file_is_given_out(world: World) -> None:
    for path in (f"{DOCS}/redoc.standalone.js", f"{DOCS}/..%2f__init__.py", f"{DOCS}/x"):
        assert (await world.http.get(path)).status_code in {404, 422}
