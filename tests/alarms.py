"""Alerting as its tests see it: the service, who it tells, and what others say to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
from aiosmtpd.smtp import SMTP, Envelope, Session
from fastapi import FastAPI
from standardwebhooks import Webhook

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events.base import Event, to_message
from libs.common.events.ingest import DeviceAlertReported, DeviceCreated
from libs.common.events.ml import AnomalyDetected
from libs.common.events.rules import RuleCleared, RuleTriggered
from libs.common.severity import Severity
from services.alerting.app import build
from services.alerting.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.waiting import until


class Mailbox:
    """A mail server on loopback that keeps what it is given."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.port = 0

    async def handle_DATA(  # noqa: N802 - aiosmtpd finds its hooks by these names
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        return "250 taken"

    def to(self, address: str) -> list[EmailMessage]:
        """Return the mails to one address; others' tests may send here too."""
        return [mail for mail in self.mails if mail["To"] == address]


@dataclass
class Hook:
    """One webhook that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def type(self) -> str:
        told: str = json.loads(self.body)["type"]
        return told

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.body)["data"]
        return facts

    def is_signed_by(self, secret: str) -> bool:
        """Whether the Standard Webhooks library believes it; raises if not."""
        Webhook(secret).verify(self.body.decode(), self.headers)
        return True


@dataclass
class Receiver:
    """A web server on loopback. It answers each path as told, 200 where nothing is said."""

    port: int = 0
    hooks: list[Hook] = field(default_factory=list)
    answers: dict[str, list[int]] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """Paths that take the request and answer when their event is set."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[Hook]:
        return [hook for hook in self.hooks if hook.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            self.hooks.append(Hook(path, headers, body))
            if path in self.gates:
                await self.gates[path].wait()
            told = self.answers.get(path)
            status = told.pop(0) if told else 200
            writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def mailbox() -> AsyncIterator[Mailbox]:
    """Run a mail server."""
    box = Mailbox()
    connections: list[SMTP] = []
    loop = asyncio.get_running_loop()

    def factory() -> SMTP:
        connections.append(SMTP(box, hostname="localhost", loop=loop))
        return connections[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()
        for connection in connections:
            if connection.transport is not None:
                connection.transport.close()
            if connection._handler_coroutine is not None:
                connection._handler_coroutine.cancel()
                await asyncio.wait([connection._handler_coroutine])


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Run a web server."""
    taker = Receiver()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(taker.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    taker.port = server.sockets[0].getsockname()[1]
    try:
        yield taker
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def settings_for(
    urls: DatabaseUrls, *, mail_port: int = 1, hook_port: int | None = None, **others: object
) -> Settings:
    """Return settings of an alerting that tells these two and looks for what is due often."""
    allow = f"127.0.0.1:{hook_port}" if hook_port else ""
    return Settings.model_validate(
        {
            "database_url": urls.rw("alerting"),
            "engine_database_url": urls.engine("alerting"),
            "public_url": "https://console.example/",
            "smtp_host": "127.0.0.1",
            "smtp_port": mail_port,
            "smtp_security": "none",
            "smtp_sender": "alerts@plant.example",
            "webhook_allow": allow,
            "delivery_tick": 0.2,
            "drain": 0.5,
        }
        | others
    )


@asynccontextmanager
async def running(settings: Settings, bus: LocalBus, keys: KeySource) -> AsyncIterator[FastAPI]:
    """Run an alerting of its own, on a bus that is not started yet."""
    app = build(settings, bus, SystemClock(), keys=keys)
    async with app.router.lifespan_context(app):
        await bus.start()
        try:
            yield app
        finally:
            await bus.stop()


class Plant:
    """One tenant: what happens there, and what its people do."""

    def __init__(
        self, app: FastAPI, headers: PrincipalHeaders, bus_publish: Any, tenant_id: UUID
    ) -> None:
        self.app = app
        self.tenant_id = tenant_id
        self.device_id = uuid4()
        self.rule_id = uuid4()
        self.ana = uuid4()
        self._headers = headers
        self._publish = bus_publish

    # --- what others say

    def triggered(self, **changes: Any) -> RuleTriggered:
        """Return the word that the bearing runs hot."""
        now = SystemClock().now()
        fields: dict[str, Any] = {
            "tenant_id": self.tenant_id,
            "at": now,
            "firing_id": uuid4(),
            "rule_id": self.rule_id,
            "rule_name": "Bearing temperature",
            "rule_version": 1,
            "device_id": self.device_id,
            "severity": Severity.CRITICAL,
            "condition": "above 90 for 30 s",
            "metric": "bearing_temperature",
            "value": 96.4,
            "threshold": 90.0,
            "operator": "gt",
            "ts": now,
        }
        return RuleTriggered(**(fields | changes))

    def cleared(self, fired: RuleTriggered, **changes: Any) -> RuleCleared:
        """Return the word that it does no longer."""
        now = SystemClock().now()
        fields: dict[str, Any] = {
            "tenant_id": self.tenant_id,
            "at": now,
            "firing_id": fired.firing_id,
            "rule_id": fired.rule_id,
            "rule_name": fired.rule_name,
            "rule_version": 1,
            "device_id": fired.device_id,
            "severity": fired.severity,
            "reason": "recovered",
            "ts": now,
        }
        return RuleCleared(**(fields | changes))

    def anomaly(self, **changes: Any) -> AnomalyDetected:
        """Return the word that the vibration is unusual."""
        now = SystemClock().now()
        fields: dict[str, Any] = {
            "tenant_id": self.tenant_id,
            "at": now,
            "model_id": uuid4(),
            "device_id": self.device_id,
            "metric": "vibration",
            "score": 0.97,
            "value": 7.2,
            "expected": 1.5,
            "ts": now,
        }
        return AnomalyDetected(**(fields | changes))

    def alarm(
        self, *, active: bool = True, at: datetime | None = None, key: str = "oil"
    ) -> DeviceAlertReported:
        """Return the device's own word that its oil is low, or no longer."""
        return DeviceAlertReported(
            tenant_id=self.tenant_id,
            at=at or SystemClock().now(),
            device_id=self.device_id,
            severity="high",
            message="oil low",
            key=key,
            active=active,
        )

    async def hears(self, *events: Event) -> None:
        """Let alerting hear these, in order."""
        await self._publish([to_message(event) for event in events])

    async def knows_the_device_as(self, name: str) -> None:
        """Let alerting know the device's name."""
        await self.hears(
            DeviceCreated(
                tenant_id=self.tenant_id,
                at=SystemClock().now(),
                device_id=self.device_id,
                name=name,
                device_type="pump",
            )
        )

    # --- what people do

    async def ask(
        self,
        method: str,
        path: str,
        *permissions: str,
        subject: UUID | None = None,
        headers: dict[str, str] | None = None,
        **sent: Any,
    ) -> httpx2.Response:
        """Ask alerting over HTTP as one of this tenant's users (Ana, who may do everything)."""
        who = self._headers(self.tenant_id, *permissions, subject=subject or self.ana)
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(self.app), base_url="http://alerting", verify=False
        ) as client:
            return await client.request(
                method, f"/api/v1{path}", headers=who | (headers or {}), **sent
            )

    async def mails_to(self, address: str, **changes: Any) -> UUID:
        """Set up a channel that sends mail; return its id."""
        answer = await self.ask(
            "POST",
            "/notification-channels",
            json={"name": address, "kind": "email", "config": {"address": address}} | changes,
        )
        assert answer.status_code == 201, answer.text
        return UUID(answer.json()["id"])

    async def posts_to(self, url: str, **changes: Any) -> tuple[UUID, str]:
        """Set up a webhook; return its id and its secret."""
        answer = await self.ask(
            "POST",
            "/notification-channels",
            json={"name": url, "kind": "webhook", "config": {"url": url}} | changes,
        )
        assert answer.status_code == 201, answer.text
        return UUID(answer.json()["id"]), answer.json()["secret"]

    async def alerts(self, **query: Any) -> list[dict[str, Any]]:
        """Return the tenant's alerts, newest first."""
        answer = await self.ask("GET", "/alerts", params=query)
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def list_of(self, alert_id: str, what: str) -> list[dict[str, Any]]:
        """Return an alert's notes, history or notifications."""
        answer = await self.ask("GET", f"/alerts/{alert_id}/{what}")
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def has_alerts(self, *states: str) -> list[dict[str, Any]]:
        """Wait until the tenant has alerts in just these states, newest first; return them."""

        async def holds() -> bool:
            return [alert["state"] for alert in await self.alerts()] == list(states)

        await until(holds, f"alerts in states {states}, not {await self.alerts()}")
        return await self.alerts()

    async def notification_is(
        self,
        alert_id: str,
        channel_id: UUID,
        kind: str,
        status: str,
        *,
        attempts: int | None = None,
    ) -> Any:
        """Wait until a channel's notification is in a status, after so many attempts; return it."""
        found: list[dict[str, Any]] = []

        async def holds() -> bool:
            found[:] = [
                n
                for n in await self.list_of(alert_id, "notifications")
                if n["channel_id"] == str(channel_id) and n["kind"] == kind
            ]
            return (
                bool(found)
                and found[0]["status"] == status
                and attempts in (None, found[0]["attempts"])
            )

        await until(holds, f"{kind} is {status} on {channel_id}, not {found}")
        return found[0]


async def shift_clock(urls: DatabaseUrls, by: str) -> None:
    """Move PostgreSQL's idea of now by an interval such as `31 seconds`."""
    await rows(urls, f"UPDATE sec.clock SET shift = '{by}'")


async def rows(urls: DatabaseUrls, sql: str, *values: object) -> Sequence[asyncpg.Record]:
    """Return rows as a superuser sees them."""
    connection = await asyncpg.connect(urls.admin)
    try:
        found: Sequence[asyncpg.Record] = await connection.fetch(sql, *values)
        return found
    finally:
        await connection.close()
