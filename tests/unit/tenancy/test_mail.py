"""What the mails about accounts say, and how long they are tried."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from services.tenancy.adapters.letters import Look, Wording, render
from services.tenancy.domain.mail import TRIED_FOR, Mail, Purpose, next_attempt

NOW = datetime(2026, 11, 21, 4, 0, 5, tzinfo=UTC)
LINK = "https://console.example/reset-password#token=iiotp_x"


@pytest.mark.parametrize("purpose", Purpose)
def test_every_mail_says_the_same_twice_and_lets_no_name_become_markup(purpose: Purpose) -> None:
    tenant = "<b>Acme</b>\r\nBcc: all@evil.example {{ 7 * 7 }}"
    letter = render(purpose, Look(), tenant=tenant, at=NOW, link=LINK, until=NOW)
    assert LINK in letter.text
    assert LINK in letter.page
    assert "<b>Acme" not in letter.page
    assert "\n" not in letter.subject
    assert "49" not in letter.subject + letter.text.replace(LINK, "")


def test_a_tenant_has_its_own_look_and_words() -> None:
    words = Wording("Hello from {{ tenant }}", "Welcome", ("Good until {{ until }}.",), "Go", "")
    look = Look("Acme", "#ff0000", "https://acme.example/logo.png", {Purpose.INVITATION: words})
    letter = render(Purpose.INVITATION, look, tenant="Acme", at=NOW, link=LINK, until=NOW)
    assert letter.subject == "Hello from Acme"
    assert "Good until 21 Nov 2026, 04:00 UTC." in letter.text
    assert "#ff0000" in letter.page
    assert "https://acme.example/logo.png" in letter.page


def test_a_mail_is_tried_ever_more_rarely_and_given_up_after_a_day() -> None:
    now, waits, attempts = NOW, [], 0
    while attempts < 1000:
        attempts += 1
        mail = Mail(uuid4(), Purpose.INVITATION, "a@b.example", None, NOW, attempts=attempts)
        again = next_attempt(mail, now)
        if again is None:
            break
        waits.append(again - now)
        now = again
    assert waits[0] == timedelta(seconds=10)
    assert waits == sorted(waits)
    assert max(waits) == timedelta(hours=1)
    assert TRIED_FOR - timedelta(hours=1) <= now - NOW < TRIED_FOR
