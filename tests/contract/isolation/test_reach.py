"""Somebody limited to site A walks through the platform with site B's ids in hand, and learns nothing."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import pytest

from tests.contract.isolation.test_walk import (
    ADMIN,
    FIELDS,
    KINDS,
    PASSWORD,
    PUBLIC,
    REFUSED,
    Platform,
    Tenant,
    listening,
    platform,  # noqa: F401 - a fixture
    urls,  # noqa: F401 - a fixture of that one
)
from tests.contract.isolation.walker import Territory, walk
from tests.waiting import until

OF_SITES = (
    "alert",
    "anomaly",
    "claim token",
    "command",
    "connector",
    "credential",
    "device",
    "gateway",
    "group",
    "model",
    "provisioning key",
    "quarantined",
    "removed device",
    "rule",
    "sent command",
)
"""Kinds of things that belong to a site. What belongs to none is everybody's, or nobody's who is limited."""

NOT_FOR_THE_LIMITED = "this concerns all devices"

HANGS_ON_DEVICES = (
    "alerting.alerts",
    "ingest.claims",
    "ingest.commands",
    "ingest.credentials",
    "ingest.device_attributes",
    "ingest.gateways",
    "ingest.quarantine",
    "ml.anomalies",
    "ml.models",
    "rules.rules",
)


async def two_sites(platform: Platform) -> tuple[Tenant, Tenant, Tenant]:  # noqa: F811 - the fixture's value
    """Open a plant; return what is made at site A, at site B, and an admin limited to site A."""
    root = Tenant(platform, uuid4(), ADMIN, "root")
    plant = await platform.open_tenant(root, f"plant-{secrets.token_hex(4)}")
    a = Tenant(platform, plant.id, plant.email, f"walk-{secrets.token_hex(4)}")
    b = Tenant(platform, plant.id, plant.email, f"canary-{secrets.token_hex(4)}")
    email = f"guest-{secrets.token_hex(4)}@walk.example"
    made = await a.call(
        "POST",
        "/api/v1/users",
        email=email,
        name="Guest",
        roles=["admin"],
        device_groups=[await a.home()],
    )
    joined = await platform.http.post(
        "/api/v1/auth/invitations/accept",
        json={"token": made["invitation"]["token"], "password": PASSWORD},
    )
    assert joined.status_code == 200, joined.text
    return a, b, Tenant(platform, plant.id, email, a.mark)


@pytest.mark.timeout(300)
async def test_one_site_learns_nothing_of_another(platform: Platform) -> None:  # noqa: F811 - the fixture's value
    a, b, guest = await two_sites(platform)
    theirs = {}
    for kind, make in b.makers().items():
        b.owner = None
        theirs[kind] = await make() if kind in OF_SITES else str(uuid4())
    b.owner = None
    theirs["site"] = await b.home()
    await platform.until_quiet(b.id)

    async def user() -> str:
        return await a.user(device_groups=[await a.home()])

    async def api_key() -> str:
        return await a.api_key(device_groups=[await a.home()])

    mine: dict[str, Callable[[], Awaitable[str]]] = {
        **a.makers(),
        "site": a.home,
        "user": user,
        "api key": api_key,
    }

    async def fingerprint() -> dict[str, str]:
        there = "SELECT device_id FROM historian.device_places WHERE $1 = ANY(groups)"
        return {
            table: await platform.admin.fetchval(
                "SELECT coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), '')"
                f" FROM {table} t WHERE device_id IN ({there})",
                UUID(theirs["site"]),
            )
            for table in HANGS_ON_DEVICES
        }

    async def credential(operation: str) -> dict[str, str]:
        # A device speaks for itself, and not for the guest.
        return await (a if "/devices/me/" in operation else guest).credential(operation)

    land = Territory(
        http=platform.http,
        document=(await platform.http.get("/api/v1/openapi.json")).json(),
        credential=credential,
        kinds={**KINDS, "device_groups": "site"},
        mine=mine,
        theirs=theirs,
        canaries=frozenset({b.mark}),
        fingerprint=fingerprint,
        fields=FIELDS,
        public=PUBLIC,
        refused={
            **REFUSED,
            # Whosever they are: connectors are hidden from the limited, and not theirs to use.
            "GET /api/v1/connectors/{connector_id}": 404,
            "POST /api/v1/connectors/{connector_id}/browse": 403,
            # Made by another person, and a person's own.
            "PATCH /api/v1/auth/factors/{factor_id}": 404,
            "DELETE /api/v1/auth/factors/{factor_id}": 404,
            "POST /api/v1/auth/factors/recovery-codes": 409,
            "DELETE /api/v1/auth/sessions/{session_id}": 404,
        },
    )
    # What concerns the whole tenant is refused in so many words, and proves nothing about B.
    faults = [fault for fault in await walk(land) if NOT_FOR_THE_LIMITED not in fault]
    assert not faults, "\n".join(faults)


async def test_of_another_site_nothing_is_heard(
    platform: Platform,  # noqa: F811 - the fixture's value
) -> None:
    a, b, guest = await two_sites(platform)
    mine, theirs = await a.device(), await b.device()
    async with listening(guest) as heard, listening(b) as all_is_heard:

        async def both_have_spoken() -> bool:
            await b.report(theirs, 21.5)
            await a.report(mine, 20.5)
            await asyncio.sleep(0.1)
            return all(
                any("telemetry_update" in text and device in text for text in texts)
                for texts, device in ((heard, mine), (all_is_heard, mine), (all_is_heard, theirs))
            )

        await until(both_have_spoken, "each hears what they may")
    assert not [text for text in heard if theirs in text or b.mark in text]
