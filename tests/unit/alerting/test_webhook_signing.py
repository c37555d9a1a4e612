"""What a webhook says and how it vouches for it; no network."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from libs.common.errors import Invalid
from libs.common.outbound import Reply
from services.alerting.adapters.webhook import (
    check_secret,
    encode_notice,
    read_reply,
    sign,
    write_secret,
)
from services.alerting.domain.notice import NoticeKind
from services.alerting.domain.outcome import Delivered, Gone, Outcome, Retry
from tests.notices import a_notice

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
OLD = write_secret(b"o" * 24)
NEW = write_secret(b"n" * 32)


def reply(status: int, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, named, b"", whole=True)


def test_the_signature_is_the_one_of_the_standard() -> None:
    # The example of the specification's reference libraries.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    at = datetime.fromtimestamp(1614265330, UTC)

    headers = sign([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", at, b'{"test": 2432232314}')

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_a_secret_is_replaced_both_receivers_are_content() -> None:
    now = datetime.now(UTC)
    body = encode_notice(a_notice(), "https://console.example/")

    headers = sign([NEW, OLD], "id-1", now, body)

    for known in (NEW, OLD):
        Webhook(known).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(write_secret(b"x" * 24)).verify(body, headers)


@settings(deadline=None)
@given(st.text(), st.text(), st.one_of(st.floats(), st.booleans(), st.text(), st.none()))
def test_any_notice_becomes_json_that_verifies(
    title: str, message: str, value: float | bool | str | None
) -> None:
    notice = a_notice(title=title, message=message, value=value)
    body = encode_notice(notice, "https://console.example/")

    assert body == encode_notice(notice, "https://console.example/")
    assert json.loads(body)["data"]["title"] == title
    headers = sign([NEW], str(notice.notification_id), datetime.now(UTC), body)
    Webhook(NEW).verify(body, headers)


def test_the_body_tells_all_that_a_receiver_needs() -> None:
    notice = a_notice(kind=NoticeKind.RESOLVED, actor="Ana")

    assert json.loads(encode_notice(notice, "https://console.example/")) == {
        "type": "alert.resolved",
        "timestamp": "2026-11-21T04:00:00Z",
        "data": {
            "notification_id": str(notice.notification_id),
            "alert_id": str(notice.alert_id),
            "tenant_id": str(notice.tenant_id),
            "severity": "critical",
            "title": "Bearing runs hot",
            "message": "The bearing temperature rose above 90 °C.",
            "device_id": str(notice.device_id),
            "device_name": "pump-2",
            "metric": "bearing_temperature",
            "value": 96.4,
            "unit": "°C",
            "rule_name": "Bearing temperature",
            "condition": "above 90 °C for 30 s",
            "actor": "Ana",
            "opened_at": "2026-11-21T04:00:00Z",
            "url": f"https://console.example/alerts/{notice.alert_id}",
        },
    }


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_written_secret_passes_its_own_check(size: int) -> None:
    check_secret(write_secret(b"k" * size))


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_c2hvcnQ=", "c2VjcmV0" * 4, "whsec_" + "§" * 32, "whsec_" + "A" * 200],
)
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_secret(secret, "/config/secret")

    assert refusal.value.errors[0].pointer == "/config/secret"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (reply(200), Delivered("HTTP 200")),
        (reply(204), Delivered("HTTP 204")),
        (reply(302, location="https://elsewhere.example/"), Retry("HTTP 302")),
        (reply(400), Retry("HTTP 400")),
        (reply(404), Retry("HTTP 404")),
        (reply(410), Gone("HTTP 410")),
        (reply(500), Retry("HTTP 500")),
        (reply(429, retry_after="120"), Retry("HTTP 429", timedelta(minutes=2))),
        (reply(503, retry_after="999999999999999"), Retry("HTTP 503", timedelta(hours=24))),
        (reply(503, retry_after="-5"), Retry("HTTP 503")),
        (reply(503, retry_after="soon"), Retry("HTTP 503")),
        (reply(503, retry_after="٣"), Retry("HTTP 503")),
    ],
)
def test_only_a_2xx_counts_as_delivered(answer: Reply, outcome: Outcome) -> None:
    assert read_reply(answer, NOW) == outcome


@pytest.mark.parametrize(
    ("at", "wait"),
    [
        (NOW + timedelta(minutes=5), timedelta(minutes=5)),
        (NOW - timedelta(minutes=5), timedelta()),
        (NOW + timedelta(days=400), timedelta(hours=24)),
    ],
)
def test_retry_after_may_be_a_date(at: datetime, wait: timedelta) -> None:
    answer = reply(503, retry_after=format_datetime(at, usegmt=True))

    assert read_reply(answer, NOW) == Retry("HTTP 503", wait)


def test_a_notice_without_device_or_value_is_still_told() -> None:
    notice = replace(a_notice(), device_id=None, device_name=None, value=None, unit=None)

    assert json.loads(encode_notice(notice, "https://console.example/"))["data"]["value"] is None
