"""The parts of the API, in the order in which one gets to know them."""

from collections.abc import Mapping
from types import MappingProxyType

TAGS: Mapping[str, str] = MappingProxyType(
    {
        "auth": "Log in and out, and see who one is.",
        "devices": "What is connected: devices, their profiles, groups, credentials and state.",
        "telemetry": "Send points, and see what could not be stored and why.",
        "ledger": "What a device sent, hour by hour: received, stored, refused, missing.",
        "commands": "Tell a device what to do, and follow what becomes of it.",
        "connectors": "Connections that the platform makes: to brokers, OPC UA servers and PLCs.",
        "rules": "What is watched, and when it is an alert.",
        "alerts": "What is wrong, who has it, and who was told.",
        "notification channels": "Where alerts are told: mail addresses and webhooks.",
        "analytics": "Time series and statistics of what was measured.",
        "ml": "Models of what is normal, and what was not.",
        "retention": "How long data is kept.",
        "tenants": "The organisations that share the installation.",
        "users": "Who works for a tenant.",
        "roles": "What they may do.",
        "api keys": "What programs show in place of a login.",
        "identity providers": "Where a tenant's people log in, when not here: OpenID Connect, SAML, LDAP.",
        "audit": "Who did what, and when.",
        "plans": "What a tenant may use, and what it has used.",
        "billing": "What a month comes to, for the invoice.",
        "branding": "How the pages look where a tenant's people log in.",
        "rate limits": "How often one may ask.",
    }
)
"""Each tag of the routes with its description. Who adds a tag adds its line."""
