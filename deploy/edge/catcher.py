"""The edge's own receiver: what would leave the machine as mail or webhook lands in an inbox here.

A real SMTP server, an endpoint for webhooks, and a page that shows what they got.
"""

import asyncio
import hmac
import json
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as mail_policy
from pathlib import Path
from uuid import uuid4

from aiosmtpd.smtp import SMTP, Envelope, Session
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from deploy.edge.inbox import Hook, Inbox, Json, Mail, Signature
from deploy.edge.server import EmbeddedServer
from libs.common.clock import Clock, SystemClock
from libs.common.severity import Severity

MAX_MAIL_BYTES = 5 * 1024 * 1024
MAX_HOOK_BYTES = 1024 * 1024
TOLERANCE = timedelta(minutes=5)
"""How old or new a webhook's timestamp may be (Standard Webhooks)."""

_PAGE = Path(__file__).parent / "inbox_page"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
# A mail runs no script, loads nothing and is of no origin; its links open beside it.
_MAIL_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none';"
    " style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'"
)
_SUBJECT_MARK = re.compile(r"^\[([A-Z]+)\]")

_Keep = Callable[[Envelope], None]


class Catcher:
    """Catches mails and webhooks on one address of this machine. Port 0 takes a free one.

    `secrets` are those that webhooks are signed with; more can be told later by `trust`. Every
    webhook is taken, verified or not: the page shows which.
    """

    def __init__(
        self,
        state: Path,
        *,
        smtp_port: int = 0,
        http_port: int = 0,
        host: str = "127.0.0.1",
        secrets: Iterable[str] = (),
        clock: Clock | None = None,
    ) -> None:
        self.host = host
        self.smtp_port = smtp_port
        self.http_port = http_port
        self._state = state
        self._secrets = set(secrets)
        self._clock = clock or SystemClock()
        self._inbox: Inbox | None = None
        self._smtp: asyncio.Server | None = None
        self._sessions: set[_SmtpSession] = set()
        self._http: EmbeddedServer | None = None
        self.app = Starlette(
            routes=[
                Route("/", self._show_page),
                Route("/messages.json", self._list_messages, methods=["GET"]),
                Route("/messages.json", self._forget_messages, methods=["DELETE"]),
                Route("/mails/{number:int}.html", self._show_mail),
                Route("/hooks/{path:path}", self._catch_webhook, methods=["POST"]),
                Mount("/page", StaticFiles(directory=_PAGE)),
            ],
            # A web page elsewhere must not read the inbox by pointing its own name at us.
            middleware=[
                Middleware(
                    TrustedHostMiddleware,
                    allowed_hosts=[host, "localhost", "127.0.0.1", "[::1]"],
                    www_redirect=False,
                )
            ],
        )

    @property
    def url(self) -> str:
        """Where the inbox is shown."""
        return f"http://{self.host}:{self.http_port}/"

    def hook_url(self, name: str) -> str:
        """Return the URL to enter for a webhook of that name."""
        return f"{self.url}hooks/{name}"

    def trust(self, secret: str) -> None:
        """Verify webhooks by this secret too."""
        self._secrets.add(secret)

    @property
    def inbox(self) -> Inbox:
        """The messages. Only while started."""
        assert self._inbox is not None, "the catcher is not started"
        return self._inbox

    async def start(self) -> None:
        """Open the inbox and both ports. Raises OSError if a port is taken."""
        loop = asyncio.get_running_loop()
        self._inbox = Inbox(self._state)
        try:
            self._smtp = await loop.create_server(self._new_session, self.host, self.smtp_port)
            self.smtp_port = self._smtp.sockets[0].getsockname()[1]
            listening = socket.create_server((self.host, self.http_port))
        except OSError:
            await self.stop()
            raise
        self.http_port = listening.getsockname()[1]
        self._http = EmbeddedServer(self.app, listening)
        self._http.start()

    async def stop(self) -> None:
        """Close everything; what was caught stays in the state folder."""
        if self._smtp is not None:
            self._smtp.close()
            await asyncio.gather(*(session.end() for session in list(self._sessions)))
        if self._http is not None:
            await self._http.stop()
        if self._inbox is not None:
            self._inbox.close()
        self._smtp = self._http = self._inbox = None

    def _new_session(self) -> "_SmtpSession":
        return _SmtpSession(self._keep_mail, self._sessions)

    def _keep_mail(self, envelope: Envelope) -> None:
        content = envelope.content
        assert isinstance(content, bytes)
        message = message_from_bytes(content, policy=mail_policy)
        mail = _read_mail(message, str(envelope.mail_from or ""), envelope.rcpt_tos)
        given = str(message.get("Message-ID", "")).strip() or uuid4().hex
        self.inbox.add(mail, " ".join([given, *sorted(mail.recipients)]), self._clock.now())

    async def _catch_webhook(self, request: Request) -> Response:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > MAX_HOOK_BYTES:
                return Response(status_code=413)
        now = self._clock.now()
        signature = judge(request.headers, bytes(raw), self._secrets, now)
        hook = _read_hook(request, bytes(raw), signature)
        key = f"{hook.path} {request.headers.get('webhook-id') or uuid4().hex}"
        self.inbox.add(hook, key, now)
        return Response(status_code=204)

    async def _show_page(self, request: Request) -> Response:
        return FileResponse(
            _PAGE / "inbox.html",
            headers={
                "Content-Security-Policy": _PAGE_POLICY,
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-cache",
            },
        )

    async def _list_messages(self, request: Request) -> Response:
        mark = f'"{self.inbox.version()}"'
        headers = {"ETag": mark, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        if request.headers.get("if-none-match") == mark:
            return Response(status_code=304, headers=headers)
        listing = {"smtp": f"{self.host}:{self.smtp_port}", "messages": self.inbox.messages()}
        # Escaped to ASCII: a broken mail may hold what UTF-8 cannot.
        return Response(json.dumps(listing), headers=headers, media_type="application/json")

    async def _forget_messages(self, request: Request) -> Response:
        self.inbox.clear()
        return Response(status_code=204)

    async def _show_mail(self, request: Request) -> Response:
        html = self.inbox.html(request.path_params["number"])
        if html is None:
            return Response(status_code=404)
        return HTMLResponse(
            # A frame of no origin cannot navigate its parent: links get a tab of their own.
            '<!doctype html><base target="_blank">' + html,
            headers={
                "Content-Security-Policy": _MAIL_POLICY,
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )


def judge(
    headers: Mapping[str, str], body: bytes, secrets: Iterable[str], now: datetime
) -> Signature:
    """Return whether a webhook is signed as Standard Webhooks asks, with one of the secrets."""
    message_id = headers.get("webhook-id", "")
    stamp = headers.get("webhook-timestamp", "")
    given = headers.get("webhook-signature", "").split()
    if not (message_id and stamp and given):
        return Signature.MISSING
    known = [Webhook(secret) for secret in secrets]
    if not known:
        return Signature.UNKNOWN
    try:
        at = datetime.fromtimestamp(int(stamp), UTC)
        text = body.decode("utf-8")
    except (ValueError, OverflowError, OSError):
        return Signature.WRONG
    right = [webhook.sign(message_id, at, text).encode() for webhook in known]
    if not any(hmac.compare_digest(one, other.encode()) for one in right for other in given):
        return Signature.WRONG
    return Signature.VERIFIED if abs(now - at) <= TOLERANCE else Signature.STALE


class _SmtpSession(SMTP):
    """One connection of a mail client; it calls `keep` with each mail, which is then taken."""

    def __init__(self, keep: _Keep, sessions: "set[_SmtpSession]") -> None:
        super().__init__(
            _Handler(keep),
            data_size_limit=MAX_MAIL_BYTES,
            hostname="catcher.localhost",
            ident="catcher",
            enable_SMTPUTF8=True,
            loop=asyncio.get_running_loop(),
        )
        self._open = sessions

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._open.discard(self)

    async def end(self) -> None:
        """Hang up, and wait until the session's task has ended."""
        if self.transport is not None:
            self.transport.close()
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()
            await asyncio.wait([self._handler_coroutine])


class _Handler:
    def __init__(self, keep: _Keep) -> None:
        self._keep = keep

    async def handle_DATA(  # noqa: N802 - aiosmtpd finds it by this name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self._keep(envelope)
        return "250 caught"


def _read_mail(message: EmailMessage, sender: str, recipients: Sequence[str]) -> Mail:
    subject = str(message.get("Subject", ""))
    mark = _SUBJECT_MARK.match(subject)
    return Mail(
        sender=sender,
        recipients=list(recipients),
        subject=subject,
        headers=[(name, str(value)) for name, value in message.items()],
        text=_content(message, "plain") or "",
        html=_content(message, "html"),
        severity=_severity(mark[1].lower() if mark else None),
        resolved="] Resolved: " in subject,
    )


def _content(message: EmailMessage, kind: str) -> str | None:
    part = message.get_body((kind,))
    if part is None:
        return None
    raw = part.get_payload(decode=True)
    assert isinstance(raw, bytes), "a body is no multipart"
    try:
        return raw.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:
        return raw.decode("utf-8", "replace")


def _read_hook(request: Request, raw: bytes, signature: Signature) -> Hook:
    text = raw.decode("utf-8", "replace")
    try:
        body: Json = json.loads(text)
        # Python reads NaN and Infinity, which no browser does.
        json.dumps(body, allow_nan=False)
    except (ValueError, RecursionError):
        body = None
    envelope = body if isinstance(body, Mapping) else {}
    told = envelope.get("data")
    facts = told if isinstance(told, Mapping) else {}
    kind = _text(envelope.get("type"))
    return Hook(
        path=str(request.path_params["path"]),
        signature=signature,
        headers=[(name, value) for name, value in request.headers.items()],
        raw=text,
        body=body,
        type=kind,
        title=_text(facts.get("title")),
        severity=_severity(_text(facts.get("severity"))),
        resolved=(kind or "").endswith(".resolved"),
    )


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


def _severity(word: str | None) -> str | None:
    return word if word in set(Severity) else None
