"""Every operation of the platform that creates may be sent again."""

import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg
import pytest

from tests.contract.isolation.test_walk import ADMIN, Platform, Tenant, running
from tests.contract.isolation.walker import Document
from tests.database import DatabaseUrls, fresh_database
from tests.servers import SharedServer
from tests.waiting import until

WITHOUT_KEY = {
    "POST /api/v1/devices/provision": "a device not heard of since is the same one again",
    "POST /api/v1/auth/ws-ticket": "a ticket that nobody uses is void after half a minute",
    "POST /api/v1/auth/passkeys": "a challenge is good once, and so is what was made to answer it",
    "POST /api/v1/rate-limits": "a name is given once: the second time it is a conflict",
}
"""What answers 201 and takes no Idempotency-Key, and why."""

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PARAMETER = re.compile(r"\{[a-z_]+\}")


@pytest.fixture
def urls(postgres_server: SharedServer) -> DatabaseUrls:
    """A migrated database for this alone."""
    return fresh_database(postgres_server)


@pytest.fixture
async def platform(urls: DatabaseUrls) -> AsyncIterator[Platform]:
    """The whole platform."""
    async with running(urls) as platform:
        yield platform


def creating(document: Document) -> dict[str, Document]:
    """Return the operations that answer 201, by method and path with parameters as {}."""
    return {
        _PARAMETER.sub("{}", f"{method.upper()} {path}"): described
        for path, methods in document["paths"].items()
        for method, described in methods.items()
        if "201" in described.get("responses", {})
    }


@dataclass(slots=True)
class Doubter(Tenant):
    """Sends all that creates twice, with one key, and looks at what comes back."""

    created: set[str] = field(default_factory=set)

    async def call(self, method: str, path: str, **body: object) -> Document:
        """Ask for something that must be granted, and again: both answers must read alike."""
        name, http = _ID.sub("{}", f"{method} {path}"), self.platform.http
        headers = {**await self.credential(), "idempotency-key": str(uuid4())}
        first = await http.request(method, path, json=body or None, headers=headers)
        assert first.is_success, f"{name}: {first.status_code} {first.text}"
        if first.status_code == 201 and name not in WITHOUT_KEY:
            again = await http.request(method, path, json=body or None, headers=headers)
            assert again.headers.get("idempotency-replayed") == "true", f"{name}: {again.text}"
            assert (again.status_code, again.content) == (first.status_code, first.content)
            self.created.add(name)
        document: Document = first.json() if first.content else {}
        return document


@pytest.mark.timeout(120)
async def test_all_that_creates_may_be_sent_again(platform: Platform) -> None:
    root = Doubter(platform, uuid4(), ADMIN, "root")
    opened = await platform.open_tenant(root, f"doubter-{secrets.token_hex(4)}")
    plant = Doubter(platform, opened.id, opened.email, opened.mark)
    things = await plant.settle()
    await plant.call("POST", f"/api/v1/devices/{things['device']}/credentials")
    await plant.call("POST", "/api/v1/devices/claim", claim_token=things["claim token"])
    await plant.call("POST", f"/api/v1/users/{things['user']}/invitation")
    await plant.call("POST", f"/api/v1/api-keys/{things['api key']}/rotate", overlap="PT1H")
    empty = await root.call("POST", "/api/v1/tenants", slug=f"{plant.mark}-2", name="Empty")
    body = {"email": f"{plant.mark}-2@walk.example", "name": "Boss"}
    await root.call("POST", f"/api/v1/tenants/{empty['id']}/admins", **body)
    await plant.call("POST", f"/api/v1/users/{things['user']}/invitation")
    name = f"orphan-{secrets.token_hex(4)}"
    orphan = await root.call("POST", "/api/v1/tenants", slug=name, name=name)
    admin = {"email": f"{name}@walk.example", "name": name}
    await root.call("POST", f"/api/v1/tenants/{orphan['id']}/admins", **admin)

    await root.call("POST", "/api/v1/plans", name=f"plan-{secrets.token_hex(4)}", quotas={})

    document = (await platform.http.get("/api/v1/openapi.json")).json()
    operations = creating(document)
    assert root.created | plant.created | WITHOUT_KEY.keys() == operations.keys()
    for name, described in operations.items():
        headers = [p["name"] for p in described.get("parameters", []) if p["in"] == "header"]
        assert ("Idempotency-Key" in headers) == (name not in WITHOUT_KEY), name


async def test_every_service_forgets_keys_that_are_old(urls: DatabaseUrls) -> None:
    admin = await asyncpg.connect(urls.admin)
    tables = [
        row["name"]
        for row in await admin.fetch(
            "SELECT oid::regclass::text AS name FROM pg_class"
            " WHERE relname = 'idempotency_keys' AND relkind = 'r'"
        )
    ]
    assert len(tables) == 6
    for table in tables:
        await admin.execute(
            f"INSERT INTO {table} (tenant_id, key, request, created_at)"
            " VALUES (gen_random_uuid(), 'old', '', now() - interval '25 hours'),"
            " (gen_random_uuid(), 'young', '', now() - interval '23 hours')"
        )

    async def are_forgotten() -> bool:
        left = {t: await admin.fetchval(f"SELECT string_agg(key, ' ') FROM {t}") for t in tables}
        return set(left.values()) == {b"young"}

    async with running(urls):
        await until(are_forgotten, "each service forgets the old key alone")
    await admin.close()
