"""Mail over a real SMTP connection, to servers that take it and to servers that do not."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from libs.common.mail import MailServer, Security
from services.alerting.adapters.email import EmailSender
from services.alerting.domain.outcome import Delivered, Outcome, Refused, Retry
from tests.notices import a_notice

BASE = "https://console.example/"
NOW = datetime(2026, 11, 21, 4, 0, 5, tzinfo=UTC)


class Mailbox:
    """Keeps what is handed in; answers as it is told."""

    def __init__(self, *, on_recipient: str = "250 OK", on_data: str = "250 taken as 42") -> None:
        self._on_recipient = on_recipient
        self._on_data = on_data
        self.mails: list[tuple[Envelope, Session]] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd finds its hooks by these names
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._on_recipient.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self._on_recipient

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self.mails.append((envelope, session))
        return self._on_data

    def read(self) -> EmailMessage:
        [(envelope, _)] = self.mails
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        return message


def _check_login(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: object
) -> AuthResult:
    assert isinstance(login, LoginPassword)
    known = (login.login, login.password) == (b"plant", b"right")
    return AuthResult(success=known, handled=False)


@asynccontextmanager
async def serving(
    mailbox: Mailbox,
    *,
    starttls: ssl.SSLContext | None = None,
    tls: ssl.SSLContext | None = None,
    login: bool = False,
) -> AsyncIterator[MailServer]:
    loop = asyncio.get_running_loop()
    connections: list[SMTP] = []

    def factory() -> SMTP:
        connection = SMTP(
            mailbox,
            hostname="localhost",
            tls_context=starttls,
            require_starttls=starttls is not None,
            auth_required=login,
            authenticator=_check_login,
            loop=loop,
        )
        connections.append(connection)
        return connection

    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls)
    try:
        port: int = server.sockets[0].getsockname()[1]
        yield MailServer("127.0.0.1", port, "alerts@plant.example", security=Security.NONE)
    finally:
        server.close()
        for connection in connections:
            # Closed like this whatever state a broken handshake has left it in.
            if connection.transport is not None:
                connection.transport.close()
            if connection._handler_coroutine is not None:
                connection._handler_coroutine.cancel()
                await asyncio.wait([connection._handler_coroutine])


async def send(server: MailServer, to: str = "ana@plant.example") -> Outcome:
    return await EmailSender(server, BASE).send(a_notice(), to, now=NOW)


async def test_a_notice_arrives_as_a_mail() -> None:
    mailbox = Mailbox()
    async with serving(mailbox) as server:
        outcome = await send(server)

    assert outcome == Delivered("taken as 42")
    [(envelope, _)] = mailbox.mails
    assert (envelope.mail_from, envelope.rcpt_tos) == (
        "alerts@plant.example",
        ["ana@plant.example"],
    )
    message = mailbox.read()
    assert message["Subject"] == "[CRITICAL] Bearing runs hot · pump-2"
    assert message["From"] == "Plant alerts <alerts@plant.example>"
    assert message["Message-ID"] == f"<{a_notice().notification_id}@plant.example>"
    page = message.get_body(("html",))
    assert page is not None
    assert "96.4 °C" in page.get_content()


class TestProtection:
    authority = trustme.CA()

    @pytest.fixture
    def server_side(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        return context

    @pytest.fixture
    def client_side(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    async def test_a_connection_is_upgraded_before_anything_is_said(
        self, server_side: ssl.SSLContext, client_side: ssl.SSLContext
    ) -> None:
        mailbox = Mailbox()
        async with serving(mailbox, starttls=server_side) as server:
            protected = replace(server, security=Security.STARTTLS, tls_context=client_side)
            assert await send(protected) == Delivered("taken as 42")

        [(_, session)] = mailbox.mails
        assert session.ssl is not None

    async def test_a_connection_is_encrypted_from_the_first_byte(
        self, server_side: ssl.SSLContext, client_side: ssl.SSLContext
    ) -> None:
        mailbox = Mailbox()
        async with serving(mailbox, tls=server_side) as server:
            protected = replace(server, security=Security.TLS, tls_context=client_side)
            assert await send(protected) == Delivered("taken as 42")

    async def test_a_server_that_cannot_upgrade_gets_no_mail(self) -> None:
        mailbox = Mailbox()
        async with serving(mailbox) as server:
            outcome = await send(replace(server, security=Security.STARTTLS))

        assert isinstance(outcome, Retry)
        assert mailbox.mails == []

    @pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
    async def test_a_server_that_nobody_vouches_for_gets_no_mail(
        self, server_side: ssl.SSLContext, security: Security
    ) -> None:
        mailbox = Mailbox()
        starttls = server_side if security is Security.STARTTLS else None
        tls = server_side if security is Security.TLS else None
        async with serving(mailbox, starttls=starttls, tls=tls) as server:
            outcome = await send(replace(server, security=security))

        assert isinstance(outcome, Retry)
        assert mailbox.mails == []

    @pytest.mark.parametrize(
        ("password", "outcome"),
        [("right", Delivered("taken as 42")), ("wrong", Retry("the mail server answered 535"))],
    )
    async def test_the_server_may_ask_who_sends(
        self,
        server_side: ssl.SSLContext,
        client_side: ssl.SSLContext,
        password: str,
        outcome: Outcome,
    ) -> None:
        async with serving(Mailbox(), starttls=server_side, login=True) as server:
            known = replace(
                server,
                security=Security.STARTTLS,
                tls_context=client_side,
                username="plant",
                password=password,
            )
            assert await send(known) == outcome

    def test_the_password_is_not_in_the_representation(self) -> None:
        assert "s3cret" not in repr(MailServer("mail", 25, "a@b.example", password="s3cret"))


@pytest.mark.parametrize(
    ("mailbox", "outcome"),
    [
        (Mailbox(on_recipient="550 no such user"), Refused("the mail server answered 550")),
        (Mailbox(on_recipient="451 greylisted"), Retry("the mail server answered 451")),
        (Mailbox(on_data="554 looks like spam"), Refused("the mail server answered 554")),
        (Mailbox(on_data="452 full"), Retry("the mail server answered 452")),
    ],
)
async def test_a_refusal_for_good_and_one_for_now_are_told_apart(
    mailbox: Mailbox, outcome: Outcome
) -> None:
    async with serving(mailbox) as server:
        assert await send(server) == outcome


async def test_a_server_that_is_down_is_tried_again() -> None:
    async with serving(Mailbox()) as server:
        pass

    assert await send(server) == Retry("cannot reach the mail server")


async def test_a_server_that_never_greets_is_given_up_on() -> None:
    hung_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        hung_up.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    sender = EmailSender(
        MailServer("127.0.0.1", port, "alerts@plant.example", security=Security.NONE),
        BASE,
        time_limit=timedelta(seconds=0.3),
    )
    outcome = await sender.send(a_notice(), "ana@plant.example", now=NOW)
    await asyncio.wait_for(hung_up.wait(), 5)
    server.close()

    assert outcome == Retry("the mail server did not answer in time")


async def test_an_address_with_a_second_header_in_it_is_refused_before_connecting() -> None:
    mailbox = Mailbox()
    async with serving(mailbox) as server:
        outcome = await send(server, "ana@plant.example\r\nBcc: eve@evil.example")

    assert isinstance(outcome, Refused)
    assert mailbox.mails == []
