"""Notices as mail: an HTML page and the same in plain text, by SMTP."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from jinja2 import FileSystemLoader, StrictUndefined, select_autoescape
from jinja2.sandbox import SandboxedEnvironment

from libs.common.errors import Invalid
from libs.common.mail import (
    TIME_LIMIT,
    MailServer,
    Verdict,
    hand_in,
    new_message,
    on_one_line,
    shorten,
)
from libs.common.severity import Severity
from services.alerting.domain.notice import Notice, NoticeKind
from services.alerting.domain.outcome import Delivered, Outcome, Refused, Retry


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
        self._time_limit = time_limit

    async def send(self, notice: Notice, to: str, *, now: datetime, zone: tzinfo = UTC) -> Outcome:
        """Make one attempt, of fifteen seconds at most. Times are shown in `zone`."""
        try:
            message = compose(notice, to, self._server, self._base_url, now=now, zone=zone)
        except Invalid as invalid_address:
            return Refused(f"the address {invalid_address.errors[0].reason}")
        answer = await hand_in(self._server, message, self._time_limit)
        match answer.verdict:
            case Verdict.TAKEN:
                return Delivered(answer.words)
            case Verdict.LATER:
                return Retry(answer.words)
            case Verdict.REFUSED:
                return Refused(answer.words)


def compose(
    notice: Notice, to: str, server: MailServer, base_url: str, *, now: datetime, zone: tzinfo = UTC
) -> EmailMessage:
    """Return the message. Raises Invalid if `to` is no single address.

    Its Message-ID depends on the notification alone, so that a repeated delivery is one mail to
    most servers; all mails of an alert refer to one thread.
    """
    message = new_message(
        server,
        to,
        subject=subject_of(notice),
        message_id=str(notice.notification_id),
        at=now,
    )
    thread = f"<alert.{notice.alert_id}@{server.domain}>"
    message["In-Reply-To"] = message["References"] = thread
    if notice.severity is Severity.CRITICAL and notice.kind is not NoticeKind.RESOLVED:
        message["Importance"] = "high"
        message["X-Priority"] = "1"
    text, page = render(notice, base_url, zone)
    message.set_content(text)
    message.add_alternative(page, subtype="html")
    return message


def subject_of(notice: Notice) -> str:
    """Return the subject: what, how bad, and about what, on one line of readable length."""
    title = on_one_line(notice.title)
    device = on_one_line(notice.device_name or "")
    about = f"{title} · {device}" if device and device not in title else title
    mark = notice.severity.value.upper()
    if notice.kind is NoticeKind.OPENED:
        return shorten(f"[{mark}] {about}")
    return shorten(f"[{mark}] {_WHAT[notice.kind]}: {about}")


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
