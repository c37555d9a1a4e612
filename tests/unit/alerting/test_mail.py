"""What a mail about an alert looks like, before it is sent."""

import re
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from html.parser import HTMLParser
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.errors import Invalid
from libs.common.mail import MailServer
from libs.common.severity import Severity
from services.alerting.adapters.email import compose, render, subject_of
from services.alerting.domain.notice import Notice, NoticeKind
from tests.notices import a_notice

SERVER = MailServer("localhost", 25, "alerts@plant.example", sender_name="Plant alerts")
BASE = "https://console.example/"
NOW = datetime(2026, 11, 21, 4, 0, 5, tzinfo=UTC)


def mail(notice: Notice, to: str = "ana@plant.example") -> EmailMessage:
    """Return the message as a receiver reads it from its bytes."""
    sent = compose(notice, to, SERVER, BASE, now=NOW)
    received = message_from_bytes(sent.as_bytes(), policy=default)
    assert isinstance(received, EmailMessage)
    return received


def text_of(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    content = part.get_content()
    assert isinstance(content, str)
    return content


def test_a_mail_says_the_same_in_text_and_in_html() -> None:
    message = mail(a_notice())

    assert message.get_content_type() == "multipart/alternative"
    for kind in ("plain", "html"):
        content = text_of(message, kind)
        for fact in (
            "Bearing runs hot",
            "pump-2",
            "bearing_temperature",
            "96.4 °C",
            "above 90 °C for 30 s",
            "21 Nov 2026, 04:00:00 UTC",
            "https://console.example/alerts/0e7a3f0c-6f1e-4a55-9a55-000000000002",
        ):
            assert fact in content


def test_a_repeated_delivery_is_the_same_mail_and_an_alert_is_one_thread() -> None:
    opened, again = mail(a_notice()), mail(a_notice())
    resolved = mail(
        a_notice(kind=NoticeKind.RESOLVED, notification_id="0e7a3f0c-6f1e-4a55-9a55-0000000000ff")
    )

    assert opened["Message-ID"] == again["Message-ID"]
    assert resolved["Message-ID"] != opened["Message-ID"]
    assert resolved["References"] == opened["References"] == opened["In-Reply-To"]
    assert opened["References"] != opened["Message-ID"]


def test_the_subject_says_how_bad_and_about_what() -> None:
    assert subject_of(a_notice()) == "[CRITICAL] Bearing runs hot · pump-2"
    assert (
        subject_of(a_notice(kind=NoticeKind.RESOLVED, title="pump-2 runs hot"))
        == "[CRITICAL] Resolved: pump-2 runs hot"
    )


def test_only_an_open_critical_alert_is_marked_urgent() -> None:
    assert mail(a_notice())["Importance"] == "high"
    assert mail(a_notice(severity=Severity.LOW))["Importance"] is None
    assert mail(a_notice(kind=NoticeKind.RESOLVED))["Importance"] is None


def test_times_are_shown_where_the_reader_lives() -> None:
    text, _ = render(a_notice(), BASE, ZoneInfo("Europe/Berlin"))

    assert "21 Nov 2026, 05:00:00 CET" in text


def test_a_resolved_alert_says_how_long_it_lasted_and_who_ended_it() -> None:
    notice = a_notice(kind=NoticeKind.RESOLVED, actor="Ana Kovač")
    text, _ = render(
        a_notice(
            kind=NoticeKind.RESOLVED,
            actor="Ana Kovač",
            at=notice.opened_at + timedelta(minutes=12, seconds=4),
        ),
        BASE,
    )

    assert re.search(r"Lasted: +12 min 4 s", text)
    assert re.search(r"Resolved by: +Ana Kovač", text)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(90, "°C", "90 °C"), (True, None, "yes"), (False, "ignored", "no"), ("jammed", None, "jammed"),
     (1234567.0, "m³", "1.23457e+06 m³"), (0.1 + 0.2, "bar", "0.3 bar"), (0.0, "kW", "0 kW")],
)  # fmt: skip
def test_a_value_is_written_for_people(
    value: float | bool | str, unit: str | None, shown: str
) -> None:
    text, _ = render(a_notice(value=value, unit=unit), BASE)

    assert re.search(rf"^Value: +{re.escape(shown)}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "to",
    [
        "",
        "ana",
        "ana@",
        "@plant.example",
        "ana@plant..example",
        ".ana@plant.example",
        "ana@-plant.example",
        "ana@plant.example.",
        "änna@plant.example",
        "ana@plant.example\n",
        "ana\x00@plant.example",
        "a" * 65 + "@plant.example",
        "ana@" + "a." * 150 + "example",
        "ana@plant.example, eve@evil.example",
        "ana@plant.example\r\nBcc: eve@evil.example",
        "ana@plant.example\nBcc: eve@evil.example",
        "Ana <ana@plant.example>",
        "ana@plant.example eve@evil.example",
    ],
)
def test_what_is_not_one_address_gets_no_mail(to: str) -> None:
    with pytest.raises(Invalid):
        compose(a_notice(), to, SERVER, BASE, now=NOW)


@pytest.mark.parametrize(
    "to",
    ["ana@plant.example", "ana.kovac+iiot@mail.plant.example", "root@localhost", "o'neil@x.io"],
)
def test_an_ordinary_address_gets_mail(to: str) -> None:
    assert mail(a_notice(), to)["To"].addresses[0].addr_spec == to


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_no_text_of_a_user_or_device_begins_a_header(title: str, device: str, rule: str) -> None:
    hostile = a_notice(
        title=f"\x00\x1b{title}\r\nBcc: eve@evil.example\r\n\r\n<b>",
        device_name=f"\nBcc: eve@evil.example\n{device}",
        rule_name=rule,
    )
    plain = mail(a_notice())

    assert mail(hostile).keys() == plain.keys()
    assert mail(hostile)["Subject"].isprintable()


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_markup_in_a_notice_stays_text() -> None:
    payload = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 1234*1000 }}{% raw %}"
    _, page = render(
        a_notice(title=payload, message=payload, device_name=payload, metric=payload, value=payload,
                 rule_name=payload, condition=payload, actor=payload), BASE
    )  # fmt: skip
    elements = _Elements()
    elements.feed(page)

    assert "script" not in elements.tags
    assert "img" not in elements.tags
    assert "onerror" not in elements.attributes
    assert "1234000" not in page


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "JaVaScRiPt:alert(1)"])
def test_a_link_leads_to_a_web_page_or_to_the_console(url: str) -> None:
    _, page = render(a_notice(url=url), BASE)

    assert f'href="{BASE}"' in page


@pytest.mark.parametrize("severity", list(Severity))
@pytest.mark.parametrize("kind", list(NoticeKind))
def test_every_kind_and_severity_has_its_words_and_colour(
    kind: NoticeKind, severity: Severity
) -> None:
    text, page = render(a_notice(kind=kind, severity=severity), BASE)

    assert severity.value.upper() in text
    assert "undefined" not in page.lower()
