"""Which service answers which part of the API."""

import re
from collections.abc import Mapping
from types import MappingProxyType

API = "/api/v1/"

OURSELVES = "gateway"

OWNERS: Mapping[str, str] = MappingProxyType(
    {
        "devices": "ingest",
        "device-profiles": "ingest",
        "device-groups": "ingest",
        "provisioning-keys": "ingest",
        "telemetry": "ingest",
        "connectors": "ingest",
        "connector-kinds": "ingest",
        "rules": "rules",
        "alerts": "alerting",
        "notification-channels": "alerting",
        "analytics": "analytics",
        "ml": "ml",
        "retention": "retention",
        "tenants": "tenancy",
        "plans": "tenancy",
        "billing": "tenancy",
        "branding": "tenancy",
        "users": "tenancy",
        "roles": "tenancy",
        "permissions": "tenancy",
        "identity-providers": "tenancy",
        "api-keys": "tenancy",
        "authz": "tenancy",
        "rate-limits": OURSELVES,
        "cors-origins": OURSELVES,
        "audit": "tenancy",
    }
)
"""The service behind the first segment after /api/v1/. What is the gateway's own and asks for a
permission comes to its routes as to any service: with a principal."""

_WITH_PRINCIPAL = re.compile(rf"{API}users/[^/]+/sessions\Z")
_WITH_TOKEN = re.compile(rf"{API}tenants/[^/]+/switch\Z")
"""What lies below another's part and is answered by the gateway, which keeps the sessions."""

OPEN = frozenset(
    {
        ("GET", f"{API}branding"),
        ("POST", f"{API}devices/provision"),
        ("GET", f"{API}telemetry/influx/ping"),
        ("HEAD", f"{API}telemetry/influx/ping"),
    }
)
"""What needs no login: a device that registers itself, by a key which ingest looks at; and what
InfluxDB's clients ask before they show who they are."""


def owner_of(segment: str | None, path: str) -> str | None:
    """Return the service that answers a path; None for what the gateway answers to who is logged in."""
    if segment is None or segment not in OWNERS or _WITH_TOKEN.match(path):
        return None
    return OURSELVES if _WITH_PRINCIPAL.match(path) else OWNERS[segment]


def segment_of(path: str) -> str | None:
    """Return the first segment after /api/v1/; None for any other path, and for one with dots in it.

    A path that climbs (`/api/v1/devices/../../internal`) might be read otherwise by who gets it.
    """
    if not path.startswith(API):
        return None
    if "/." in path and any(part in {".", ".."} for part in path.split("/")):
        return None
    return path[len(API) :].partition("/")[0]
