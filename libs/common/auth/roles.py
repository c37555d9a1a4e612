"""Which permissions there are, and the roles that every tenant has from the start.

A permission is `<resource>:<action>`; a role holds patterns of them, as `Principal.may` reads
them: `alerts:*` is every action on alerts, `*:read` reading of everything, `*` all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

PERMISSIONS: Mapping[str, str] = MappingProxyType(
    {
        "devices:read": "See devices, their profiles and their state.",
        "devices:write": "Register, change and remove devices; issue and void their credentials.",
        "connectors:read": "See connections to other brokers, servers and machines.",
        "connectors:write": "Set connections up, change and remove them; browse the other side.",
        "telemetry:read": "Read points.",
        "telemetry:write": "Send points over HTTP; correct and replay what lies in quarantine.",
        "commands:read": "See commands and what became of them.",
        "commands:send": "Send commands to devices.",
        "rules:read": "See rules and their versions.",
        "rules:write": "Make, change, switch and remove rules.",
        "alerts:read": "See alerts, their history and their notifications.",
        "alerts:acknowledge": "Take ownership of an alert; add notes.",
        "alerts:resolve": "Close an alert.",
        "channels:read": "See where notifications go.",
        "channels:write": "Change where notifications go.",
        "analytics:read": "Run analyses and read their results.",
        "ml:read": "See models, anomalies and predictions.",
        "ml:write": "Train, promote and remove models.",
        "retention:read": "See how long data is kept, archives and reports.",
        "retention:write": "Change how long data is kept; archive, restore and erase.",
        "users:read": "See the tenant's users.",
        "users:write": "Add, change and remove the tenant's users.",
        "roles:read": "See roles and what they permit.",
        "roles:write": "Make, change and remove the tenant's own roles.",
        "api_keys:read": "See the tenant's API keys, without their secrets.",
        "api_keys:write": "Make, change, rotate and revoke API keys.",
        "identity_providers:read": "See by which identity providers people come in.",
        "identity_providers:write": "Let people come in by an identity provider, as members.",
        "tenants:read": "See the tenant itself.",
        "tenants:write": "Change the tenant itself.",
        "rate_limits:read": "See how much may be asked for, by whom and of what.",
        "rate_limits:write": "Limit what the tenant's own users and programs may ask for.",
        "audit:read": "Read the audit trail.",
    }
)
"""Every permission that a role may hold, with what it lets one do."""


@dataclass(frozen=True, slots=True)
class BuiltInRole:
    """A role that every tenant has and none can change."""

    name: str
    description: str
    permissions: tuple[str, ...]


# Written out, not `*:read`: a resource added later is not shown to viewers by accident.
_EVERYDAY = (
    "devices:read",
    "connectors:read",
    "telemetry:read",
    "commands:read",
    "rules:read",
    "alerts:read",
    "channels:read",
    "analytics:read",
    "ml:read",
    "retention:read",
    "roles:read",
    "tenants:read",
)

ADMIN = "admin"

BUILT_IN: Mapping[str, BuiltInRole] = MappingProxyType(
    {
        role.name: role
        for role in (
            BuiltInRole(ADMIN, "May do everything in the tenant.", ("*",)),
            BuiltInRole(
                "developer",
                "Connects devices and builds rules, analyses and models.",
                (
                    *_EVERYDAY,
                    "devices:write",
                    "connectors:write",
                    "telemetry:write",
                    "commands:send",
                    "rules:write",
                    "alerts:acknowledge",
                    "alerts:resolve",
                    "channels:write",
                    "ml:write",
                    "rate_limits:read",
                ),
            ),
            BuiltInRole(
                "operator",
                "Runs the plant: answers alerts and sends commands.",
                (
                    *_EVERYDAY,
                    "users:read",
                    "alerts:acknowledge",
                    "alerts:resolve",
                    "commands:send",
                ),
            ),
            BuiltInRole("viewer", "Sees how the plant runs.", _EVERYDAY),
            BuiltInRole("auditor", "Reads everything, the audit trail included.", ("*:read",)),
        )
    }
)


def is_pattern(text: str) -> bool:
    """Whether it is a permission that exists, or a pattern that holds at least one."""
    return text == "*" or any(
        covers((text,), permission) for permission in PERMISSIONS if ":" in text
    )


def covers(held: Iterable[str], wanted: str) -> bool:
    """Whether who holds these patterns holds the wanted one too, itself a permission or a pattern.

    Single patterns are compared: all actions on alerts, one by one, do not make `alerts:*`, which
    also holds the actions to come.
    """
    patterns = frozenset(held)
    if "*" in patterns or wanted in patterns:
        return True
    resource, separator, action = wanted.partition(":")
    return bool(separator) and (f"{resource}:*" in patterns or f"*:{action}" in patterns)
