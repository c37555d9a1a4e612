"""Which service answers which part of the API."""

from collections.abc import Mapping
from types import MappingProxyType

API = "/api/v1/"

OWNERS: Mapping[str, str] = MappingProxyType(
    {
        "devices": "ingest",
        "telemetry": "ingest",
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


def segment_of(path: str) -> str | None:
    """Return the first segment after /api/v1/; None for any other path, and for one with dots in it.

    A path that climbs (`/api/v1/devices/../../internal`) might be read otherwise by who gets it.
    """
    if not path.startswith(API):
        return None
    if "/." in path and any(part in {".", ".."} for part in path.split("/")):
        return None
    return path[len(API) :].partition("/")[0]
