"""The edge's inbox: real mails and webhooks in, a page and a list out."""

import asyncio
import smtplib
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from ipaddress import IPv4Address
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from deploy.edge.catcher import MAX_HOOK_BYTES, Catcher
from deploy.edge.inbox import KEPT
from libs.common.mail import MailServer, Security
from libs.common.outbound import Guard, OutboundClient
from services.alerting.adapters.email import EmailSender
from services.alerting.adapters.webhook import WebhookSender, sign, write_secret
from services.alerting.domain.notice import NoticeKind
from services.alerting.domain.outcome import Delivered
from tests.notices import a_notice

BASE = "http://localhost:8000/"
SECRET = write_secret(b"s" * 32)


@pytest.fixture
async def catcher(tmp_path: Path) -> AsyncIterator[Catcher]:
    catcher = Catcher(tmp_path / "inbox", secrets=[SECRET])
    await catcher.start()
    yield catcher
    await catcher.stop()


@pytest.fixture
async def http(catcher: Catcher) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=catcher.url, trust_env=False) as client:
        yield client


async def listed(http: httpx2.AsyncClient) -> list[dict[str, Any]]:
    answer = await http.get("messages.json")
    assert answer.status_code == 200
    messages: list[dict[str, Any]] = answer.json()["messages"]
    return messages


def mailer(catcher: Catcher) -> EmailSender:
    server = MailServer(
        catcher.host, catcher.smtp_port, "alerts@plant.example", security=Security.NONE
    )
    return EmailSender(server, BASE)


def hooker(catcher: Catcher) -> WebhookSender:
    guard = Guard(frozenset({(IPv4Address(catcher.host), catcher.http_port)}))
    return WebhookSender(OutboundClient(guard), BASE)


async def hand_in(catcher: Catcher, mail: EmailMessage) -> None:
    def speak() -> None:
        with smtplib.SMTP(catcher.host, catcher.smtp_port, local_hostname="test") as client:
            client.send_message(mail, "eve@example.org", ["ana@plant.example"])

    await asyncio.to_thread(speak)


async def test_a_mail_and_a_webhook_of_an_alert_are_listed_newest_first(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    now = datetime.now(UTC)
    mailed = await mailer(catcher).send(a_notice(), "ana@plant.example", now=now)
    resolved = a_notice(kind=NoticeKind.RESOLVED)
    hooked = await hooker(catcher).send(
        resolved, catcher.hook_url("maintenance"), [SECRET], now=now
    )

    assert mailed == Delivered("caught")
    assert hooked == Delivered("HTTP 204")
    webhook, mail = await listed(http)
    assert (mail["kind"], mail["subject"]) == ("mail", "[CRITICAL] Bearing runs hot · pump-2")
    assert (mail["severity"], mail["resolved"]) == ("critical", False)
    assert mail["recipients"] == ["ana@plant.example"]
    assert "96.4 °C" in mail["text"]
    assert mail["has_html"]
    assert (webhook["kind"], webhook["path"]) == ("webhook", "maintenance")
    assert (webhook["severity"], webhook["resolved"]) == ("critical", True)
    assert webhook["signature"] == "verified"
    assert webhook["body"]["data"]["device_name"] == "pump-2"


async def test_a_message_that_is_sent_again_is_counted(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    now = datetime.now(UTC)
    for _ in range(2):
        await mailer(catcher).send(a_notice(), "ana@plant.example", now=now)
        await hooker(catcher).send(a_notice(), catcher.hook_url("main"), [SECRET], now=now)

    assert [message["times"] for message in await listed(http)] == [2, 2]


@pytest.mark.parametrize(
    ("secret", "age", "verdict"),
    [
        (SECRET, timedelta(), "verified"),
        (SECRET, timedelta(minutes=4), "verified"),
        (SECRET, timedelta(minutes=6), "stale"),
        (SECRET, timedelta(minutes=-6), "stale"),
        (write_secret(b"x" * 32), timedelta(), "wrong"),
    ],
)
async def test_a_signature_is_judged(
    catcher: Catcher, http: httpx2.AsyncClient, secret: str, age: timedelta, verdict: str
) -> None:
    await hooker(catcher).send(
        a_notice(), catcher.hook_url("main"), [secret], now=datetime.now(UTC) - age
    )

    assert [message["signature"] for message in await listed(http)] == [verdict]


async def test_a_body_that_was_changed_on_the_way_is_not_verified(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    headers = sign([SECRET], "id-1", datetime.now(UTC), b'{"amount": 1}')
    await http.post("hooks/main", content=b'{"amount": 9}', headers=headers)

    assert [message["signature"] for message in await listed(http)] == ["wrong"]


async def test_any_bytes_are_listed_and_never_verified(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    bodies = [b"", b"\xff", b"[" * 100_000, b'{"v": NaN}', b'"\\ud800"', b"7", b'{"data": 1}']
    signed = [
        {},
        {"webhook-id": "1", "webhook-timestamp": "now", "webhook-signature": "v1,AAAA"},
        {"webhook-id": "2", "webhook-timestamp": "9" * 40, "webhook-signature": "v1,AAAA"},
        {"webhook-id": "3", "webhook-timestamp": "1", "webhook-signature": "nonsense , ,,"},
    ]
    for number, (body, headers) in enumerate(product(bodies, signed)):
        answer = await http.post(f"hooks/{number}", content=body, headers=headers)
        assert answer.status_code == 204

    messages = await listed(http)
    assert len(messages) == len(bodies) * len(signed)
    assert {message["signature"] for message in messages} == {"missing", "wrong"}


async def test_a_secret_may_be_told_later_and_without_one_nothing_is_said(tmp_path: Path) -> None:
    catcher = Catcher(tmp_path)
    await catcher.start()
    try:
        for notice in (a_notice(), a_notice(notification_id=uuid4())):
            await hooker(catcher).send(
                notice, catcher.hook_url("main"), [SECRET], now=datetime.now(UTC)
            )
            catcher.trust(SECRET)
        signatures = [message["signature"] for message in catcher.inbox.messages()]
    finally:
        await catcher.stop()

    assert signatures == ["verified", "unknown"]


async def test_a_webhook_over_a_mebibyte_is_refused(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    answer = await http.post("hooks/main", content=b"x" * (MAX_HOOK_BYTES + 1))

    assert answer.status_code == 413
    assert await listed(http) == []


async def test_a_hostile_mail_is_shown_without_scripts_or_origin(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    mail = EmailMessage()
    mail["Subject"] = "<script>alert(1)</script>"
    mail.set_content("text")
    mail.add_alternative("<script>parent.alert(1)</script><img src=//evil.example/x>", "html")
    await hand_in(catcher, mail)

    [message] = await listed(http)
    shown = await http.get(f"mails/{message['id']}.html")
    policy = shown.headers["Content-Security-Policy"]
    assert policy.startswith(
        "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'"
    )
    assert "allow-scripts" not in policy
    assert "allow-same-origin" not in policy
    assert shown.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_mail_in_an_odd_alphabet_is_readable(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    mail = EmailMessage()
    mail["Subject"] = "Wärme · тепло"
    mail.set_content("Pumpe läuft heiß", charset="iso-8859-1")
    await hand_in(catcher, mail)

    [message] = await listed(http)
    assert message["subject"] == "Wärme · тепло"
    assert message["text"].strip() == "Pumpe läuft heiß"
    assert (await http.get(f"mails/{message['id']}.html")).status_code == 404


async def test_the_newest_two_hundred_survive_a_restart(tmp_path: Path) -> None:
    first = Catcher(tmp_path, secrets=[SECRET])
    await first.start()
    async with httpx2.AsyncClient(base_url=first.url, trust_env=False) as http:
        for number in range(KEPT + 5):
            await http.post(f"hooks/n{number}", content=b"{}")
    ports = (first.smtp_port, first.http_port)
    await first.stop()

    second = Catcher(tmp_path, smtp_port=ports[0], http_port=ports[1])
    await second.start()
    paths = [message["path"] for message in second.inbox.messages()]
    await second.stop()
    mode = stat.S_IMODE((tmp_path / "inbox.sqlite").stat().st_mode)

    assert paths == [f"n{number}" for number in range(KEPT + 4, 4, -1)]
    assert mode == 0o600


async def test_the_page_asks_only_for_what_is_new(
    catcher: Catcher, http: httpx2.AsyncClient
) -> None:
    mark = (await http.get("messages.json")).headers["ETag"]
    unchanged = await http.get("messages.json", headers={"If-None-Match": mark})
    await http.post("hooks/main", content=b"{}")
    changed = await http.get("messages.json", headers={"If-None-Match": mark})

    assert (unchanged.status_code, changed.status_code) == (304, 200)


async def test_the_page_comes_with_its_parts_and_a_strict_policy(http: httpx2.AsyncClient) -> None:
    page = await http.get("/")

    assert page.headers["Content-Type"].startswith("text/html")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    for part in ("page/inbox.css", "page/inbox.js"):
        assert part in page.text
        assert (await http.get(part)).status_code == 200


async def test_the_inbox_can_be_emptied(catcher: Catcher, http: httpx2.AsyncClient) -> None:
    await http.post("hooks/main", content=b"{}")

    assert (await http.delete("messages.json")).status_code == 204
    assert await listed(http) == []


async def test_a_foreign_name_for_this_machine_is_not_served(http: httpx2.AsyncClient) -> None:
    answer = await http.get("messages.json", headers={"Host": "rebound.example.com"})

    assert answer.status_code == 400


async def test_a_taken_port_is_said_and_nothing_stays_open(
    catcher: Catcher, tmp_path: Path
) -> None:
    other = Catcher(tmp_path / "other", http_port=catcher.http_port)

    with pytest.raises(OSError, match="in use"):
        await other.start()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", other.smtp_port)


async def test_stopping_hangs_up_on_those_who_are_still_there(tmp_path: Path) -> None:
    catcher = Catcher(tmp_path)
    await catcher.start()
    smtp = await asyncio.open_connection(catcher.host, catcher.smtp_port)
    http = await asyncio.open_connection(catcher.host, catcher.http_port)
    assert (await smtp[0].readline()).startswith(b"220 ")

    async with asyncio.timeout(10):
        await catcher.stop()
        assert await smtp[0].read() == b""
        assert await http[0].read() == b""
    for _, writer in (smtp, http):
        writer.close()
