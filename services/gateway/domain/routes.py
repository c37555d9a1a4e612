"""Which service answers which part of the API."""

from collections.abc import Mapping
from types import MappingProxyType

API = "/api/v1/"

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
        "users": "tenancy",
        "roles": "tenancy",
        "permissions": "tenancy",
    }
)
"""The service behind the first segment after /api/v1/."""

OPEN = frozenset(
    {
        ("POST", f"{API}devices/provision"),
        ("GET", f"{API}telemetry/influx/ping"),
        ("HEAD", f"{API}telemetry/influx/ping"),
    }
)
"""What needs no login: a device that registers itself, by a key which ingest looks at; and what
InfluxDB's clients ask before they show who they are."""


def segment_of(path: str) -> str | None:
    """Return the first segment after /api/v1/; None for any other path, and for one with dots in it.

    A path that climbs (`/api/v1/devices/../../internal`) might be read otherwise by who gets it.
    """
    if not path.startswith(API):
        return None
    if "/." in path and any(part in {".", ".."} for part in path.split("/")):
        return None
    return path[len(API) :].partition("/")[0]
