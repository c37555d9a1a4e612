"""Tenant A walks through the whole platform with tenant B's ids in hand, and learns nothing."""

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import Message

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.roles import SERVICES
from libs.common.events.base import to_message
from libs.common.events.rules import RuleTriggered
from libs.common.severity import Severity
from services.tenancy.domain.second_factor import hash_recovery_code
from tests.contract.isolation import allowed
from tests.contract.isolation.walker import Document, Territory, operations, walk
from tests.database import DatabaseUrls, create_database
from tests.servers import SharedServer
from tests.waiting import until

BUILT = tuple(service for service in SERVICES if service != "gateway")
"""All eight with the gateway: none may be left out."""

PASSWORD = "a long pass phrase for tests"
METRIC = "temperature"
ADMIN = "root@walk.example"

KINDS = {
    "actor_id": "user",
    "alert_id": "alert",
    "anomaly_id": "anomaly",
    "api_key_id": "api key",
    "channel_id": "channel",
    "command_id": "command",
    "/api/v1/devices/me/commands/{command_id}/reply#command_id": "sent command",
    "connector_id": "connector",
    "credential_id": "credential",
    "/api/v1/devices/claim#claim_token": "claim token",
    "/api/v1/devices/{device_id}/restore#device_id": "removed device",
    "/api/v1/devices/{device_id}/gateway#device_id": "gateway",
    "/api/v1/devices/{device_id}/gateway/devices#device_id": "gateway",
    "group_id": "group",
    "device_groups": "group",
    "parent_id": "group",
    "profile_id": "profile",
    "key_id": "provisioning key",
    "device_id": "device",
    "entry_id": "quarantined",
    "provider_id": "identity provider",
    "limit_id": "rate limit",
    "principal_id": "user",
    "model_id": "model",
    "policy_id": "retention policy",
    "rule_id": "rule",
    "plan_name": "plan",
    "tenant_id": "tenant",
    "user_id": "user",
    "/api/v1/users/{user_id}/sessions#user_id": "member",
    "factor_id": "factor",
    "session_id": "session",
    "/api/v1/roles/{name}#name": "role",
}
"""What kind of thing a parameter or field names. A new one belongs here, and below."""

CONNECTOR = {"url": "mqtt://192.0.2.1", "topics": [{"topic": "{device}/telemetry"}]}
"""Settings of a connection to an address that leads nowhere."""

DIRECTORY = {"kind": "ldap", "url": "ldaps://192.0.2.1", "base_dn": "dc=walk"}
"""Settings of an identity provider at an address that leads nowhere."""

FIELDS: dict[str, Callable[[], object]] = {
    "metric": lambda: METRIC,
    # A place in one's own trail: every tenant's begins with 1.
    "seq": lambda: 1,
    "scope": lambda: "server",
    "PATCH /api/v1/devices/{device_id}/gateway/devices#": lambda: {"walk": None},
    "POST /api/v1/devices/import#": lambda: f"name,type\nwalk-{uuid4()},press\n",
    "values": lambda: {METRIC: 20.5},
    "POST /api/v1/ml/models/{model_id}/score#values": lambda: [20.5],
    "POST /api/v1/telemetry/quarantine/{entry_id}/replay#": lambda: {"values": {METRIC: 20.5}},
    "name": lambda: f"walk-{uuid4()}",
    "month": lambda: "2026-11",
    "colour_on_light": lambda: "#0b5cad",
    "colour_on_dark": lambda: "#7cc4ff",
    "slug": lambda: f"walk-{uuid4()}",
    "type": lambda: "threshold",
    "email": lambda: f"{uuid4()}@walk.example",
    "address": lambda: f"{uuid4()}@walk.example",
    "password": lambda: PASSWORD,
    "permissions": lambda: ["devices:read"],
    "scopes": lambda: ["devices:read"],
    "roles": lambda: ["viewer"],
    "role": lambda: "viewer",
    "POST /api/v1/authz/explain#permission": lambda: "devices:read",
    # It is about one or the other.
    "POST /api/v1/authz/explain#api_key_id": lambda: None,
    "PUT /api/v1/users/{user_id}#status": lambda: "disabled",
    "keep": lambda: 90,
    "data_type": lambda: "anomalies",
    "POST /api/v1/retention/policies#data_type": lambda: "alerts",
    "dry_run": lambda: True,
    **{
        f"{operation}#{field}": value
        for operation in (
            "POST /api/v1/connectors",
            "PATCH /api/v1/connectors/{connector_id}",
        )
        for field, value in (
            ("kind", lambda: "mqtt"),
            ("settings", lambda: CONNECTOR),
            ("secrets", dict),
        )
    },
    "tenant": lambda: "nobodys",
    "domains": lambda: ["walk.example"],
    "POST /api/v1/identity-providers#settings": lambda: DIRECTORY,
    "PATCH /api/v1/identity-providers/{provider_id}#settings": lambda: DIRECTORY,
    "requests": lambda: 100_000,
    "POST /api/v1/rate-limits#match": dict,
    "PUT /api/v1/rate-limits/{limit_id}#match": dict,
    "origins": lambda: ["https://walk.example"],
    "path": lambda: "/api/v1/devices",
    "require_second_factor": lambda: False,
    "POST /api/v1/auth/passkeys#credential": dict,
    "refresh_token": lambda: secrets.token_urlsafe(32),
    "token": lambda: secrets.token_urlsafe(32),
}
"""Fit values for what the schema alone does not say."""

PUBLIC = {
    "GET /api/v1/branding": "the page to log in at looks like the tenant's",
    "POST /api/v1/auth/login": "here one gets a credential",
    "POST /api/v1/auth/invitations/accept": "the invitation is the credential",
    "POST /api/v1/auth/refresh": "the refresh token is the credential",
    "GET /api/v1/auth/password/policy": "who chooses a password has none yet",
    "POST /api/v1/auth/register": "who registers is not known yet",
    "POST /api/v1/auth/verify-email": "the token in the mail is the credential",
    "POST /api/v1/auth/password/forgot": "who forgot the password has no credential",
    "POST /api/v1/auth/password/reset": "the token in the mail is the credential",
    "POST /api/v1/auth/logout": "either token says which session",
    "GET /api/v1/auth/sso/tenants/{tenant}": "who is to log in is not known yet",
    "GET /api/v1/auth/sso/tenants/{tenant}/{provider_id}/start": "who is to log in is not known yet",
    "POST /api/v1/auth/sso/tenants/{tenant}/{provider_id}/login": "here one gets a credential",
    "GET /api/v1/auth/sso/return": "the provider's answer is the credential",
    "POST /api/v1/auth/sso/saml": "the provider's response is the credential",
    **dict.fromkeys(
        (
            "POST /api/v1/auth/login/totp",
            "POST /api/v1/auth/login/recovery",
            "POST /api/v1/auth/login/enrol/totp",
            "POST /api/v1/auth/login/enrol/totp/confirm",
            "POST /api/v1/auth/login/enrol/passkey/options",
            "POST /api/v1/auth/login/enrol/passkey",
        ),
        "the pending login is the credential",
    ),
    "POST /api/v1/auth/login/passkey/options": "whoever wants to log in asks for it",
    "POST /api/v1/auth/login/passkey": "the passkey is the credential",
    "POST /api/v1/devices/provision": "the provisioning key is the credential",
}

REFUSED = {
    "POST /api/v1/auth/factors/totp/confirm": 401,
    "POST /api/v1/auth/passkeys": 401,
    "PUT /api/v1/users/{user_id}": 409,
    "DELETE /api/v1/users/{user_id}/roles/{role}": 409,
    "POST /api/v1/connectors/{connector_id}/browse": 409,
    # The walk goes on with the password that it has, and reads no mail.
    "POST /api/v1/auth/password": 422,
    "POST /api/v1/auth/email/confirm": 422,
    # An invitation's roles and groups stay as they were given.
    "PATCH /api/v1/users/{user_id}": 409,
}
"""What A's own refuses too, and nothing of B's."""

WITHOUT_ROWS = {
    "ingest.placements": "has a row for the moment until it is said where a device is",
    "historian.texts": "no metric of the walk is text",
    "tenancy.removed_tenants": "has a row when a tenant is gone",
    **{f"{service}.changes": "has rows within a transaction alone" for service in SERVICES},
}
"""Tenants' tables in which B has nothing, and so nothing to lose."""


@dataclass(slots=True)
class Tenant:
    """One of the two, logged in, and how its things are made."""

    platform: "Platform"
    id: UUID
    email: str
    mark: str
    """Stands in everything that this tenant names."""
    token: str = ""
    made: int = field(default=0)
    own: tuple[str, str] | None = None
    """The id and the token of the device that speaks for itself, once there is one."""
    site: str | None = None
    """The group that its devices are in, once there are some."""
    owner: str | None = None
    """The device that what was made last belongs to, for operations that name both."""

    async def log_in(self) -> str:
        """Open a session; return its access token."""
        answer = await self.platform.http.post(
            "/api/v1/auth/login", json={"email": self.email, "password": PASSWORD}
        )
        if answer.status_code == 202:
            answer = await self.recover(answer.json()["mfa_token"])
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token

    async def recover(self, mfa_token: str) -> httpx2.Response:
        """Go on with a login by a recovery code, which is written for it."""
        code = secrets.token_hex(8)
        await self.platform.admin.execute(
            "INSERT INTO tenancy.recovery_codes SELECT id, $2 FROM tenancy.users WHERE email = $1",
            self.email,
            hash_recovery_code(code),
        )
        return await self.platform.http.post(
            "/api/v1/auth/login/recovery", json={"mfa_token": mfa_token, "code": code}
        )

    async def credential(self, operation: str = "") -> dict[str, str]:
        """Return the headers that say who asks."""
        if "/devices/me/" in operation:
            return {"authorization": f"Bearer {(await self.robot())[1]}"}
        self.token = self.token or await self.log_in()
        return {"authorization": f"Bearer {self.token}"}

    async def call(self, method: str, path: str, **body: object) -> Document:
        """Ask for something that must be granted."""
        headers = await self.credential()
        if method == "POST":
            headers["idempotency-key"] = str(uuid4())
        answer = await self.platform.http.request(method, path, json=body or None, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        document: Document = answer.json() if answer.content else {}
        return document

    def named(self) -> str:
        """Return a name that nothing else has."""
        return f"{self.mark}-{uuid4()}"

    async def device(self) -> str:
        """Register a device."""
        made = await self.call(
            "POST",
            "/api/v1/devices",
            name=self.named(),
            type="press",
            group_id=await self.home(),
        )
        return str(made["id"])

    async def home(self) -> str:
        """Return the group that the devices are in."""
        if self.site is None:
            made = await self.call("POST", "/api/v1/device-groups", name=self.named(), kind="site")
            self.site = str(made["id"])
        return self.site

    async def connector(self) -> str:
        """Set a connection up that is not made."""
        made = await self.call(
            "POST",
            "/api/v1/connectors",
            name=self.named(),
            kind="mqtt",
            is_enabled=False,
            settings=CONNECTOR,
        )
        return str(made["id"])

    async def robot(self) -> tuple[str, str]:
        """Return the id and the token of a device that speaks for itself."""
        if self.own is None:
            made = await self.call(
                "POST",
                "/api/v1/devices",
                name=self.named(),
                type="robot",
                group_id=await self.home(),
            )
            self.own = made["id"], made["credentials"]["token"]
        return self.own

    async def command(self) -> str:
        """Send a device a command, which waits."""
        self.owner = await self.device()
        path = f"/api/v1/devices/{self.owner}/commands"
        return str((await self.call("POST", path, name=self.named()))["id"])

    async def sent_command(self) -> str:
        """Send a command to the device that speaks for itself, which fetches it."""
        device, token = await self.robot()
        path = f"/api/v1/devices/{device}/commands"
        made = await self.call("POST", path, name=self.named(), timeout="P1D")
        answer = await self.platform.http.get(
            "/api/v1/devices/me/commands", headers={"authorization": f"Bearer {token}"}
        )
        assert [given["id"] for given in answer.json()["items"]] == [made["id"]], answer.text
        return str(made["id"])

    async def gateway(self) -> str:
        device_id = await self.device()
        await self.call("PUT", f"/api/v1/devices/{device_id}/gateway", registers="press")
        return device_id

    async def device_with_points(self) -> str:
        """Register a device that has sent what a model can be trained from."""
        if self.owner is not None:
            device, self.owner = self.owner, None
            return device
        device = await self.device()
        now = datetime.now(UTC)
        points = [
            {
                "device_id": device,
                "ts": (now - timedelta(minutes=i)).isoformat(),
                "values": {METRIC: 20.0 + i % 7},
            }
            for i in range(1, 32)
        ]
        answer = await self.platform.http.post(
            "/api/v1/telemetry", json=points, headers=await self.credential()
        )
        assert answer.is_success, answer.text
        await self.platform.until_rows(
            "SELECT FROM historian.series s JOIN historian.points p"
            " ON p.tenant = s.tenant AND p.series = s.id WHERE s.device_id = $1",
            UUID(device),
            count=len(points),
        )
        return device

    async def group(self) -> str:
        """Make a group of devices."""
        made = await self.call(
            "POST", "/api/v1/device-groups", name=self.named(), parent_id=await self.home()
        )
        return str(made["id"])

    async def profile(self) -> str:
        """Make a device profile."""
        return str((await self.call("POST", "/api/v1/device-profiles", name=self.named()))["id"])

    async def provisioning_key(self) -> str:
        """Make a key by which devices register themselves."""
        made = await self.call(
            "POST",
            "/api/v1/provisioning-keys",
            name=self.named(),
            device_type="press",
            group_id=await self.home(),
        )
        return str(made["id"])

    async def credential_of_device(self) -> str:
        """Give a device a credential, a claim token and an attribute."""
        self.owner = await self.device()
        device = f"/api/v1/devices/{self.owner}"
        await self.call("POST", f"{device}/claim-token")
        await self.call("PATCH", f"{device}/attributes/server", place=self.named())
        return str((await self.call("POST", f"{device}/credentials"))["id"])

    async def claim_token(self) -> str:
        """Make a label by which a device can be claimed."""
        made = await self.call("POST", f"/api/v1/devices/{await self.device()}/claim-token")
        return str(made["claim_token"])

    async def removed_device(self) -> str:
        """Remove a device."""
        device = await self.device()
        await self.call("DELETE", f"/api/v1/devices/{device}")
        return device

    async def report(self, device: str, value: float) -> None:
        """Send a point of a device, now."""
        answer = await self.platform.http.post(
            "/api/v1/telemetry",
            json={"device_id": device, "values": {METRIC: value}},
            headers=await self.credential(),
        )
        assert answer.is_success, answer.text

    async def rule(self, device: str | None = None) -> str:
        """Make a rule, for a device if one is given."""
        made = await self.call(
            "POST",
            "/api/v1/rules",
            name=self.named(),
            type="threshold",
            device_id=device or await self.device(),
            metric=METRIC,
            condition={"operator": "gt", "value": 90},
            severity="low",
        )
        return str(made["id"])

    async def alert(self, device: UUID | None = None) -> str:
        """Let a rule trigger, for a device of one's own if none is given; return the alert's id."""
        if device is None:
            device = UUID(await self.device())
            await self.platform.until_rows(
                "SELECT FROM alerting.device_places WHERE device_id = $1", device
            )
        event = RuleTriggered(
            tenant_id=self.id,
            at=datetime.now(UTC),
            firing_id=uuid4(),
            rule_id=uuid4(),
            rule_name=self.named(),
            rule_version=1,
            device_id=device,
            severity=Severity.LOW,
            condition="above 90",
            ts=datetime.now(UTC),
        )
        await self.platform.bus.publish([to_message(event)])
        query = "SELECT id FROM alerting.alerts WHERE tenant_id = $1 AND device_id = $2"
        await self.platform.until_rows(query, self.id, device)
        return str(await self.platform.admin.fetchval(query, self.id, device))

    async def channel(self) -> str:
        """Make a channel, which sends nothing."""
        made = await self.call(
            "POST",
            "/api/v1/notification-channels",
            name=self.named(),
            kind="email",
            config={"address": f"{self.named()}@walk.example"},
            enabled=False,
        )
        return str(made["id"])

    async def model(self) -> str:
        """Train a model."""
        made = await self.call(
            "POST",
            "/api/v1/ml/models",
            name=self.named(),
            device_id=await self.device_with_points(),
            metric=METRIC,
        )
        return str(made["id"])

    async def anomaly(self) -> str:
        """Write an anomaly, as if a model had found it."""
        anomaly = uuid4()
        await self.platform.admin.execute(
            "INSERT INTO ml.anomalies (tenant_id, id, model_id, model_version, device_id, metric,"
            " ts, value, expected, z, score, peak_value, peak_z, points, calm, detected_at,"
            " ended_at) VALUES ($1, $2, gen_random_uuid(), 1, $4, $3,"
            " now(), 1, 1, 1, 1, 1, 1, 1, 1, now(), now())",
            self.id,
            anomaly,
            self.named(),
            UUID(await self.device()),
        )
        return str(anomaly)

    async def quarantined(self) -> str:
        """Write a quarantined payload, as if a device had sent it."""
        entry = uuid4()
        await self.platform.admin.execute(
            "INSERT INTO ingest.quarantine (tenant_id, id, device_id, received_at, reason, detail,"
            " payload) VALUES ($1, $2, $3, now(), 'unparseable', $4, '{}')",
            self.id,
            entry,
            UUID(await self.device()),
            self.named(),
        )
        return str(entry)

    async def policy(self) -> str:
        """Say how long alerts are kept, anew."""
        for kept in (await self.call("GET", "/api/v1/retention/policies"))["items"]:
            await self.call("DELETE", f"/api/v1/retention/policies/{kept['id']}")
        made = await self.call("POST", "/api/v1/retention/policies", data_type="anomalies", keep=77)
        return str(made["id"])

    async def rate_limit(self) -> str:
        """Limit the tenant's own users a little."""
        made = await self.call(
            "POST", "/api/v1/rate-limits", name=self.named(), requests=100_000, per="second"
        )
        return str(made["id"])

    async def user(self, **more: object) -> str:
        """Invite someone."""
        made = await self.call(
            "POST",
            "/api/v1/users",
            email=f"{self.named()}@walk.example",
            name=self.named(),
            roles=["viewer"],
            **more,
        )
        return str(made["id"])

    async def member(self) -> str:
        """Let someone join who accepts."""
        email = f"{self.named()}@walk.example"
        made = await self.call(
            "POST", "/api/v1/users", email=email, name=self.named(), roles=["viewer"]
        )
        body = {"token": made["invitation"]["token"], "password": PASSWORD}
        joined = await self.platform.http.post("/api/v1/auth/invitations/accept", json=body)
        assert joined.status_code == 200, joined.text
        return str(made["id"])

    async def session(self) -> str:
        """Log in once more; return the session's id."""
        headers = {"authorization": f"Bearer {await self.log_in()}"}
        me = await self.platform.http.get("/api/v1/auth/me", headers=headers)
        return str(me.json()["session_id"])

    async def factor(self) -> str:
        """Write a passkey of the admin's own, as if it had been registered."""
        factor = uuid4()
        await self.platform.admin.execute(
            "INSERT INTO tenancy.passkeys (id, user_id, credential_id, public_key, sign_count,"
            " transports, name, created_at) SELECT $2, id, $3, '', 0, '{}', $4, now()"
            " FROM tenancy.users WHERE email = $1",
            self.email,
            factor,
            factor.bytes,
            self.named(),
        )
        await self.platform.admin.execute(
            "INSERT INTO tenancy.one_time_codes (user_id, id, secret, created_at)"
            " SELECT id, gen_random_uuid(), '', now() FROM tenancy.users WHERE email = $1"
            " ON CONFLICT DO NOTHING",
            self.email,
        )
        await self.platform.admin.execute(
            "INSERT INTO tenancy.recovery_codes SELECT id, $2 FROM tenancy.users WHERE email = $1",
            self.email,
            secrets.token_bytes(32),
        )
        return str(factor)

    async def role(self) -> str:
        """Make a role; return its name."""
        name = self.named()
        await self.call("POST", "/api/v1/roles", name=name, permissions=["devices:read"])
        return name

    async def api_key(self, **more: object) -> str:
        """Make an API key."""
        made = await self.call(
            "POST", "/api/v1/api-keys", name=self.named(), scopes=["devices:read"], **more
        )
        return str(made["id"])

    async def plan(self) -> str:
        """Name a plan, which no tenant has a part in."""
        return "standard"

    async def itself(self) -> str:
        """Return the tenant's own id."""
        return str(self.id)

    def makers(self) -> dict[str, Callable[[], Awaitable[str]]]:
        """Return how one of each kind is made."""
        return {
            "alert": self.alert,
            "anomaly": self.anomaly,
            "api key": self.api_key,
            "channel": self.channel,
            "command": self.command,
            "sent command": self.sent_command,
            "connector": self.connector,
            "claim token": self.claim_token,
            "credential": self.credential_of_device,
            "removed device": self.removed_device,
            "device": self.device_with_points,
            "factor": self.factor,
            "gateway": self.gateway,
            "group": self.group,
            "identity provider": self.identity_provider,
            "profile": self.profile,
            "provisioning key": self.provisioning_key,
            "member": self.member,
            "model": self.model,
            "quarantined": self.quarantined,
            "plan": self.plan,
            "rate limit": self.rate_limit,
            "retention policy": self.policy,
            "role": self.role,
            "rule": self.rule,
            "session": self.session,
            "tenant": self.itself,
            "user": self.user,
        }

    async def identity_provider(self) -> str:
        """Let people come in by a directory that is nowhere."""
        made = await self.call(
            "POST",
            "/api/v1/identity-providers",
            name=self.named(),
            settings=DIRECTORY,
            domains=["walk.example"],
            default_roles=["viewer"],
        )
        return str(made["id"])

    async def settle(self) -> dict[str, str]:
        """Make one of each kind, and what else a tenant leaves in tables; return the ids."""
        things = {}
        for kind, make in self.makers().items():
            self.owner = None
            things[kind] = await make()
        # What was counted of points so far is in the ledger then.
        await self.call("GET", "/api/v1/telemetry/ledger")
        await self.call("POST", f"/api/v1/alerts/{things['alert']}/notes", text=self.named())
        await self.call("POST", "/api/v1/auth/ws-ticket")
        await self.platform.admin.execute(
            "INSERT INTO tenancy.identities (tenant_id, provider_id, subject, user_id, created_at)"
            " SELECT tenant_id, $2, $3, user_id, now() FROM tenancy.memberships"
            " WHERE tenant_id = $1 ORDER BY created_at LIMIT 1",
            self.id,
            UUID(things["identity provider"]),
            self.named(),
        )
        await self.platform.admin.execute(
            "INSERT INTO tenancy.sign_ons (tenant_id, state_hash, provider_id, attempt, expires_at)"
            " VALUES ($1, $2, $3, $2, now() + interval '1 day')",
            self.id,
            self.named().encode(),
            UUID(things["identity provider"]),
        )
        await self.call(
            "PUT", f"/api/v1/tenants/{self.id}/login-policy", require_second_factor=False
        )
        await self.platform.admin.execute(
            "INSERT INTO gateway.pending_logins (tenant_id, token_hash, user_id, proofs, enrols,"
            " proved_at, expires_at) VALUES ($1, $2, $3, '{pwd}', false, now(),"
            " now() + interval '1 day')",
            self.id,
            secrets.token_bytes(32),
            UUID(things["user"]),
        )
        # It would be swept away in the middle of the walk on a slow machine.
        await self.platform.admin.execute(
            "UPDATE gateway.tickets SET expires_at = now() + interval '1 day' WHERE tenant_id = $1",
            self.id,
        )
        await self.platform.admin.execute(
            "INSERT INTO tenancy.registration_policies (tenant_id, admits, domains, role,"
            " updated_at) VALUES ($1, 'nobody', '{}', 'viewer', now())",
            self.id,
        )
        await self.platform.admin.execute(
            "INSERT INTO tenancy.registrations (tenant_id, id, email, name, password_hash,"
            " expires_at) VALUES ($1, gen_random_uuid(), $2, $2, '', now() + interval '1 day')",
            self.id,
            self.named(),
        )
        await self.platform.admin.execute(
            "INSERT INTO tenancy.mails (tenant_id, id, purpose, email, status, created_at, due_at)"
            " VALUES ($1, gen_random_uuid(), 'invitation', $2, 'given_up', now(), now())",
            self.id,
            self.named(),
        )
        await self.platform.admin.execute(
            "INSERT INTO alerting.notifications (tenant_id, id, alert_id, channel_id, channel_name,"
            " channel_kind, kind, status, due_at, created_at) VALUES ($1, gen_random_uuid(), $2,"
            " gen_random_uuid(), $3, 'email', 'opened', 'dead', now(), now())",
            self.id,
            UUID(things["alert"]),
            self.named(),
        )
        await self.platform.admin.execute(
            "INSERT INTO ingest.mqtt_sessions (tenant_id, device_id, taken_at, expires_at, state)"
            " VALUES ($1, $2, now(), now() + interval '1 day', '')",
            self.id,
            UUID(things["device"]),
        )
        await self.platform.admin.execute(
            "INSERT INTO tenancy.api_key_uses (tenant_id, key_id, used_at, address)"
            " VALUES ($1, $2, now(), '192.0.2.1')",
            self.id,
            UUID(things["api key"]),
        )
        await self.call("PUT", "/api/v1/devices/policy", plain_coap=True)
        branding = f"/api/v1/tenants/{self.id}/branding"
        await self.call("PUT", branding, product_name=self.named())
        await self.call(
            "PUT", "/api/v1/cors-origins", origins=[f"https://{self.named()}.walk.example"]
        )
        behind = f"/api/v1/devices/{await self.gateway()}/gateway/devices"
        await self.call("PATCH", behind, walk=things["device"])
        await self.platform.admin.execute(
            "INSERT INTO ingest.oscore_sequences (tenant_id, identity, device_id, used)"
            " VALUES ($1, 'walk', $2, 1000)",
            self.id,
            UUID(things["device"]),
        )
        await self.platform.admin.execute(
            "INSERT INTO ingest.quarantine_overflow (tenant_id, dropped, since, latest)"
            " VALUES ($1, 1, now(), now()) ON CONFLICT DO NOTHING",
            self.id,
        )
        await self.platform.admin.execute(
            "INSERT INTO ingest.tenants (tenant_id, status, said_at) VALUES ($1, 'active', now())",
            self.id,
        )
        await self.platform.admin.execute(
            "INSERT INTO rules.rule_state (tenant_id, rule_id, device_id)"
            " VALUES ($1, $2, gen_random_uuid()) ON CONFLICT DO NOTHING",
            self.id,
            UUID(things["rule"]),
        )
        return things


@dataclass(slots=True)
class Platform:
    """All services in one process, and the database behind them."""

    urls: DatabaseUrls
    bus: LocalBus
    gateway: FastAPI
    apps: dict[str, FastAPI]
    http: httpx2.AsyncClient
    admin: "asyncpg.Connection[asyncpg.Record]"

    async def until_rows(self, query: str, *arguments: object, count: int = 1) -> None:
        """Wait until a query gives so many rows."""

        async def enough() -> bool:
            return len(await self.admin.fetch(query, *arguments)) >= count

        await until(enough, query)

    async def open_tenant(self, root: Tenant, mark: str) -> Tenant:
        """Open a tenant, with an admin who has accepted and chosen a password."""
        email = f"{mark}@walk.example"
        made = await root.call(
            "POST",
            "/api/v1/tenants",
            slug=mark,
            name=f"{mark} works",
            admin={"email": email, "name": f"{mark} admin"},
        )
        joined = await self.http.post(
            "/api/v1/auth/invitations/accept",
            json={"token": made["admin"]["invitation"]["token"], "password": PASSWORD},
        )
        assert joined.status_code == 200, joined.text
        return Tenant(self, UUID(made["id"]), email, mark)

    async def tenants_tables(self) -> dict[str, str]:
        """Return the tables that hold tenants' rows, with the column that says whose."""
        rows = await self.admin.fetch(
            "SELECT nspname || '.' || relname AS name, attname::text AS column FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute a ON attrelid = c.oid"
            " WHERE relkind IN ('r', 'p') AND NOT relispartition AND NOT attisdropped"
            " AND nspname = ANY($1)"
            " AND (attname = 'tenant_id' OR (attname = 'tenant' AND nspname = 'historian'))",
            list(allowed.OUR_SCHEMAS),
        )
        return {row["name"]: row["column"] for row in rows}

    async def rows_of(self, tenant: UUID) -> dict[str, tuple[int, str]]:
        """Return how many rows a tenant has in each table, and a hash of them."""
        number = await self.admin.fetchval(
            "SELECT number FROM historian.tenant WHERE id = $1", tenant
        )
        found: dict[str, tuple[int, str]] = {}
        queries = {
            table: (f"{table} t WHERE t.{column} = $1", tenant if column == "tenant_id" else number)
            for table, column in (await self.tenants_tables()).items()
        }
        queries["tenancy.users"] = (
            (
                "tenancy.users t WHERE id IN (SELECT user_id FROM tenancy.memberships"
                " WHERE tenant_id = $1)"
            ),
            tenant,
        )
        for table in ("passkeys", "one_time_codes", "recovery_codes"):
            queries[f"tenancy.{table}"] = (
                (
                    f"tenancy.{table} t WHERE user_id IN (SELECT user_id FROM tenancy.memberships"
                    " WHERE tenant_id = $1)"
                ),
                tenant,
            )
        for table, (source, argument) in queries.items():
            row = await self.admin.fetchrow(
                "SELECT count(*), coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), '')"
                f" FROM {source}",
                argument,
            )
            assert row is not None
            found[table] = (row[0], row[1])
        return found

    async def until_quiet(self, tenant: UUID) -> None:
        """Wait until nothing in the background changes the tenant's rows any more."""
        seen: list[object] = []

        async def is_quiet() -> bool:
            rows = await self.rows_of(tenant)
            seen.append(rows)
            await asyncio.sleep(0.2)
            if rows["ingest.placements"][0]:
                return False
            return len(seen) > 5 and all(look == seen[-1] for look in seen[-5:])

        await until(is_quiet, "B's rows stay as they are")


@asynccontextmanager
async def running(urls: DatabaseUrls) -> AsyncIterator[Platform]:
    """Run all eight services, the gateway in front, as the edge does."""
    clock = SystemClock()
    bus = LocalBus(urls.bus, clock)
    own: dict[str, dict[str, object]] = {
        "gateway": {
            "requests_per_minute": 1_000_000,
            "anonymous_per_minute": 1_000_000,
            "logins_per_minute": 1_000_000,
            "usage_told": timedelta(milliseconds=100),
            "public_url": "http://platform",
        },
        "tenancy": {
            "first_admin_email": ADMIN,
            "first_admin_password": PASSWORD,
            "sealing_key": "only-for-tests-and-long-enough",
        },
        "ingest": {
            "historian_writer_url": urls.writer,
            "credentials_key": "only-for-tests-and-long-enough",
            "mqtt_host": "127.0.0.1",
            "mqtt_port": 0,
            "contacts_every": timedelta(milliseconds=100),
            "usage_told": timedelta(milliseconds=100),
        },
        "rules": {"checkpoint_every": timedelta(milliseconds=100)},
        "alerting": {"delivers": False},
    }

    def build(service: str, **more: object) -> FastAPI:
        settings = import_module(f"services.{service}.settings").Settings(
            database_url=urls.rw(service),
            engine_database_url=urls.engine(service),
            database_pool=2,
            **own.get(service, {}),
        )
        app: FastAPI = import_module(f"services.{service}.app").build(settings, bus, clock, **more)
        return app

    apps: dict[str, FastAPI] = {}
    gateway = build("gateway", upstreams=apps)
    for service in BUILT:
        apps[service] = build(service, keys=gateway.state.keyring)
    async with AsyncExitStack() as stack:
        for app in (*apps.values(), gateway):
            await stack.enter_async_context(app.router.lifespan_context(app))
        await bus.start()
        stack.push_async_callback(bus.stop)
        http = await stack.enter_async_context(
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app=gateway), base_url="http://platform"
            )
        )
        admin = await asyncpg.connect(urls.admin)
        stack.push_async_callback(admin.close)
        yield Platform(urls, bus, gateway, apps, http, admin)


@pytest.fixture(scope="module")
def urls(postgres_server: SharedServer) -> Iterator[DatabaseUrls]:
    """A migrated database for the walk alone."""
    name = f"iiot_walk_{secrets.token_hex(4)}"
    directory = Path(os.environ["IIOT_TEST_RUN"].rpartition(":")[0])
    # Roles are the server's, not the database's: one migration at a time, as in tests.database.
    with (directory / "migrate.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        urls = asyncio.run(create_database(postgres_server, name))
    yield urls
    asyncio.run(_drop(postgres_server, name))


async def _drop(server: SharedServer, name: str) -> None:
    connection = await asyncpg.connect(server.url)
    await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await connection.close()


@pytest.fixture
async def platform(urls: DatabaseUrls) -> AsyncIterator[Platform]:
    """The whole platform on a database of its own."""
    async with running(urls) as platform:
        yield platform


@pytest.mark.timeout(300)
async def test_one_tenant_learns_nothing_of_another(platform: Platform) -> None:
    root = Tenant(platform, uuid4(), ADMIN, "root")
    # B first: what is listed without regard to tenants begins with B's.
    b = await platform.open_tenant(root, f"canary-{secrets.token_hex(4)}")
    theirs = await b.settle()
    a = await platform.open_tenant(root, f"walk-{secrets.token_hex(4)}")
    await platform.until_quiet(b.id)

    counts = {table: count for table, (count, _) in (await platform.rows_of(b.id)).items()}
    nothing = {table for table, count in counts.items() if not count}
    # The relays' tables are not used by the local bus.
    assert {t for t in nothing if not t.endswith(".outbox")} - {"bus.dead_letters"} == set(
        WITHOUT_ROWS
    ), "B must have something to lose in every table"

    document = (await platform.http.get("/api/v1/openapi.json")).json()

    async def fingerprint() -> dict[str, str]:
        return {table: digest for table, (_, digest) in (await platform.rows_of(b.id)).items()}

    land = Territory(
        http=platform.http,
        document=document,
        credential=a.credential,
        kinds=KINDS,
        mine=a.makers(),
        theirs=theirs,
        canaries=frozenset({b.mark}),
        fingerprint=fingerprint,
        fields=FIELDS,
        public=PUBLIC,
        # Its own connector leads to a broker, which has nothing to browse; anybody else's is 404.
        # Users of the walk have not accepted their invitations, and have one role.
        refused=REFUSED,
    )
    faults = await walk(land)
    assert not faults, "\n".join(faults)


async def test_the_walk_leaves_no_operation_out(platform: Platform) -> None:
    document = (await platform.http.get("/api/v1/openapi.json")).json()
    walked = {operation.name for operation in operations(document)}
    assert len(walked) > 50
    for service, app in platform.apps.items():
        own = {operation.name for operation in operations(app.openapi())}
        assert own, f"{service} has no operation"
        assert own <= walked, f"{service} has operations that the gateway does not describe"


async def test_no_service_answers_without_a_principal(platform: Platform) -> None:
    for service, app in platform.apps.items():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as http:
            for operation in operations(app.openapi()):
                path = operation.path
                for name in ("{metric}", "{name}"):
                    path = path.replace(name, "x")
                while "{" in path:
                    start, _, rest = path.partition("{")
                    path = f"{start}{uuid4()}{rest.partition('}')[2]}"
                answer = await http.request(operation.method, path, json={})
                if operation.name == "GET /api/v1/branding":
                    assert answer.status_code == 200, answer.text
                    continue
                if operation.name in PUBLIC:
                    assert answer.status_code in (401, 422), f"{operation.name}: {answer.text}"
                    continue
                assert answer.status_code == 401, f"{service}: {operation.name}: {answer.text}"


@asynccontextmanager
async def listening(tenant: Tenant) -> AsyncIterator[list[str]]:
    """Hold a live connection of a tenant open that wants everything; give what it is sent."""
    heard: list[str] = []
    requests: asyncio.Queue[Message] = asyncio.Queue()
    requests.put_nowait({"type": "websocket.connect"})
    requests.put_nowait({"type": "websocket.receive", "text": '{"subscribe": {}}'})

    async def send(message: Message) -> None:
        heard.append(message.get("text") or message["type"])

    ticket = (await tenant.call("POST", "/api/v1/auth/ws-ticket"))["ticket"]
    scope = {
        "type": "websocket",
        "scheme": "ws",
        "path": "/api/v1/ws",
        "raw_path": b"/api/v1/ws",
        "query_string": f"ticket={ticket}".encode(),
        "headers": [(b"host", b"platform")],
        "subprotocols": [],
        "client": ("127.0.0.1", 1),
        "server": ("platform", 80),
    }
    talk = asyncio.create_task(tenant.platform.gateway(scope, requests.get, send))
    try:
        await until(lambda: any("subscribed" in text for text in heard), "the subscription")
        yield heard
    finally:
        requests.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await talk


async def test_what_a_tenants_devices_say_reaches_that_tenant_alone(platform: Platform) -> None:
    root = Tenant(platform, uuid4(), ADMIN, "root")
    b = await platform.open_tenant(root, f"canary-{secrets.token_hex(4)}")
    a = await platform.open_tenant(root, f"walk-{secrets.token_hex(4)}")
    theirs, mine = await b.device(), await a.device()
    await b.rule(theirs)
    await a.rule(mine)
    # Nothing forbids A to name a device that is none of A's: it is as if it never existed.
    await a.rule(theirs)

    async def alerts(tenant: Tenant) -> list[Document]:
        items: list[Document] = (await tenant.call("GET", "/api/v1/alerts"))["items"]
        return items

    async with listening(a) as a_hears, listening(b) as b_hears:

        async def both_are_alarmed() -> bool:
            # Again and again: a worker may hear of a rule after the first point.
            await b.report(theirs, 99.0)
            await a.report(mine, 99.0)
            await asyncio.sleep(0.1)
            return bool(await alerts(a) and await alerts(b))

        await until(both_are_alarmed, "each tenant's own rule raises an alert")
        for heard, device in ((a_hears, mine), (b_hears, theirs)):
            for kind in ("telemetry_update", '"alert"'):
                await until(
                    lambda heard=heard, kind=kind, device=device: any(  # type: ignore[misc]  # mypy does not type defaults of a lambda
                        kind in text and device in text for text in heard
                    ),
                    f"{kind} of a tenant's own device",
                )

    assert [alert["device_id"] for alert in await alerts(a)] == [mine]
    assert [alert["device_id"] for alert in await alerts(b)] == [theirs]
    assert not [text for text in a_hears if theirs in text or b.mark in text or str(b.id) in text]
    assert not [text for text in b_hears if mine in text or a.mark in text or str(a.id) in text]
