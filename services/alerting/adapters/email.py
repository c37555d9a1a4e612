"""Notices as mail: an HTML page and the same in plain text, by SMTP."""

import asyncio
import re
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from enum import StrEnum
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from uuid import UUID

import aiosmtplib
from jinja2 import FileSystemLoader, StrictUndefined, select_autoescape
from jinja2.sandbox import SandboxedEnvironment

from libs.common.errors import Invalid, invalid
from libs.common.severity import Severity
from services.alerting.domain.notice import Notice, NoticeKind
from services.alerting.domain.outcome import Delivered, Outcome, Refused, Retry

TIME_LIMIT = timedelta(seconds=15)


class Security(StrEnum):
    """How the connection to the mail server is protected."""

    NONE = "none"
    """Not at all: for a server on the same machine."""
    STARTTLS = "starttls"
    """Begins in the clear and must be upgraded before anything is said."""
    TLS = "tls"
    """Encrypted from the first byte."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed in, and in whose name."""

    host: str
    port: int
    sender: str
    """The address in From, such as `alerts@plant.example`."""
    sender_name: str = "Plant alerts"
    security: Security = Security.STARTTLS
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls_context: ssl.SSLContext | None = None
    """None: the machine's trusted authorities."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A colour on white and the same on black, both readable (WCAG AA)."""

    light: str
    dark: str


_LOOKS = {
    Severity.CRITICAL: _Look("#b42318", "#f97066"),
    Severity.HIGH: _Look("#b93815", "#f38744"),
    Severity.MEDIUM: _Look("#93580a", "#fdb022"),
    Severity.LOW: _Look("#175cd3", "#53b1fd"),
    Severity.INFO: _Look("#475467", "#98a2b3"),
}
_RESOLVED = _Look("#067647", "#47cd89")

_WHAT = {
    NoticeKind.OPENED: "New alert",
    NoticeKind.ESCALATED: "Escalated to you",
    NoticeKind.REMINDED: "Still open",
    NoticeKind.ACKNOWLEDGED: "Acknowledged",
    NoticeKind.RESOLVED: "Resolved",
    NoticeKind.SLA_BREACHED: "Deadline missed",
    NoticeKind.TEST: "Test message",
}

# RFC 5321's dot-string and domain; quoted local parts and address literals are left out on purpose.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?=.{{1,64}}@){_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*")

_TEMPLATES = SandboxedEnvironment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class EmailSender:
    """Delivers notices by mail. `base_url` is the console's, for links."""

    def __init__(
        self, server: MailServer, base_url: str, *, time_limit: timedelta = TIME_LIMIT
    ) -> None:
        self._server = server
        self._base_url = base_url
        self._time_limit_s = time_limit.total_seconds()

    async def send(self, notice: Notice, to: str, *, now: datetime, zone: tzinfo = UTC) -> Outcome:
        """Make one attempt, of fifteen seconds at most. Times are shown in `zone`.

        What the server refuses for good about the recipient or the message is Refused; all else
        (no connection, a login that fails, "try later") is Retry.
        """
        try:
            message = compose(notice, to, self._server, self._base_url, now=now, zone=zone)
        except Invalid as invalid_address:
            return Refused(f"the address {invalid_address.errors[0].reason}")
        try:
            async with asyncio.timeout(self._time_limit_s):
                answer = await self._hand_in(message)
        except aiosmtplib.SMTPRecipientsRefused as refused:
            return _read_refusal(refused.recipients[0])
        except (aiosmtplib.SMTPRecipientRefused, aiosmtplib.SMTPDataError) as refused:
            return _read_refusal(refused)
        except aiosmtplib.SMTPNotSupported:
            return Refused("the mail server cannot take this address")
        except TimeoutError:
            return Retry("the mail server did not answer in time")
        except aiosmtplib.SMTPResponseException as response:
            return Retry(f"the mail server answered {response.code}")
        except (aiosmtplib.SMTPException, OSError):
            return Retry("cannot reach the mail server")
        return Delivered(answer)

    async def _hand_in(self, message: EmailMessage) -> str:
        server = self._server
        _, answer = await aiosmtplib.send(
            message,
            hostname=server.host,
            port=server.port,
            # None would ask DNS for our own name, and block on it.
            local_hostname=_domain(server.sender),
            username=server.username,
            password=server.password,
            use_tls=server.security is Security.TLS,
            start_tls=server.security is Security.STARTTLS,
            tls_context=server.tls_context,
            timeout=self._time_limit_s,
        )
        return answer


def check_address(address: str, pointer: str = "/address") -> None:
    """Raise Invalid at `pointer` unless it is one plain ASCII mail address, without a name."""
    if len(address) > 254 or not _ADDRESS.fullmatch(address):
        raise invalid(pointer, "must be one mail address such as ana@plant.example")


def compose(
    notice: Notice, to: str, server: MailServer, base_url: str, *, now: datetime, zone: tzinfo = UTC
) -> EmailMessage:
    """Return the message. Raises Invalid if `to` is no single address.

    Its Message-ID depends on the notification alone, so that a repeated delivery is one mail to
    most servers; all mails of an alert refer to one thread.
    """
    check_address(to)
    domain = _domain(server.sender)
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = Address(_on_one_line(server.sender_name), addr_spec=server.sender)
    message["To"] = Address(addr_spec=to)
    message["Subject"] = subject_of(notice)
    message["Date"] = now
    message["Message-ID"] = f"<{notice.notification_id}@{domain}>"
    message["In-Reply-To"] = message["References"] = _thread(notice.alert_id, domain)
    # Out-of-office replies to a machine help nobody (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "All"
    if notice.severity is Severity.CRITICAL and notice.kind is not NoticeKind.RESOLVED:
        message["Importance"] = "high"
        message["X-Priority"] = "1"
    text, page = render(notice, base_url, zone)
    message.set_content(text)
    message.add_alternative(page, subtype="html")
    return message


def subject_of(notice: Notice) -> str:
    """Return the subject: what, how bad, and about what, on one line of readable length."""
    title = _on_one_line(notice.title)
    device = _on_one_line(notice.device_name or "")
    about = f"{title} · {device}" if device and device not in title else title
    mark = notice.severity.value.upper()
    if notice.kind is NoticeKind.OPENED:
        return _shorten(f"[{mark}] {about}")
    return _shorten(f"[{mark}] {_WHAT[notice.kind]}: {about}")


def render(notice: Notice, base_url: str, zone: tzinfo = UTC) -> tuple[str, str]:
    """Return the notice as plain text and as an HTML page, times in `zone`."""
    mark = _LOOKS[notice.severity]
    facts = {
        "notice": notice,
        "what": _WHAT[notice.kind],
        "mark": mark,
        "look": _RESOLVED if notice.kind is NoticeKind.RESOLVED else mark,
        "reading": _reading(notice),
        "facts": _facts(notice, zone),
        "link": _link(base_url, notice.url),
        "subject": subject_of(notice),
    }
    return (
        _TEMPLATES.get_template("notice.txt").render(facts),
        _TEMPLATES.get_template("notice.html").render(facts),
    )


def _facts(notice: Notice, zone: tzinfo) -> list[tuple[str, str]]:
    over = notice.kind is NoticeKind.RESOLVED
    duration = _duration(notice.at - notice.opened_at)
    candidates = [
        ("Device", notice.device_name or (str(notice.device_id) if notice.device_id else None)),
        ("Metric", notice.metric),
        ("Value", _reading(notice)),
        ("Rule", notice.rule_name),
        ("Condition", notice.condition),
        ("Severity", notice.severity.value.capitalize()),
        ("Since", _moment(notice.opened_at, zone)),
        ("Lasted" if over else "Open for", duration if notice.at > notice.opened_at else None),
        (_WHAT[notice.kind] + " by", notice.actor),
    ]
    return [(name, value) for name, value in candidates if value]


def _reading(notice: Notice) -> str | None:
    value = notice.value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g} {notice.unit}" if notice.unit else f"{value:.6g}"


def _moment(at: datetime, zone: tzinfo) -> str:
    local = at.astimezone(zone)
    return f"{local:%d %b %Y, %H:%M:%S} {local.tzname() or 'UTC'}"


def _duration(span: timedelta) -> str:
    minutes, seconds = divmod(int(span.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    told = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(told[:2]) or "0 s"


def _link(base_url: str, url: str) -> str:
    """Return the address of the alert; whatever is not http(s) becomes the console's front page."""
    link = urljoin(base_url, url)
    return link if urlsplit(link).scheme in {"http", "https"} else base_url


def _read_refusal(
    refused: aiosmtplib.SMTPRecipientRefused | aiosmtplib.SMTPDataError,
) -> Refused | Retry:
    answer = f"the mail server answered {refused.code}"
    return Refused(answer) if refused.code >= 500 else Retry(answer)


def _thread(alert_id: UUID, domain: str) -> str:
    return f"<alert.{alert_id}@{domain}>"


def _domain(sender: str) -> str:
    return sender.rpartition("@")[2]


def _on_one_line(text: str) -> str:
    """Return the text without line breaks and other controls, which could begin a new header."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _shorten(text: str, length: int = 180) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
