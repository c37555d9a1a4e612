"""Webhooks as Standard Webhooks describes them: https://www.standardwebhooks.com."""

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import msgspec
from standardwebhooks import Webhook

from libs.common.errors import TooLarge, invalid
from libs.common.outbound import Blocked, OutboundClient, Reply, Unreachable
from services.alerting.domain.notice import Notice
from services.alerting.domain.outcome import Delivered, Gone, Outcome, Refused, Retry

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public mark of such a secret
SECRET_BYTES = range(24, 65)
LONGEST_WAIT = timedelta(hours=24)


def write_secret(key: bytes) -> str:
    """Return 24 to 64 random bytes as the text that is shown to the receiver once."""
    assert len(key) in SECRET_BYTES, "a key has 24 to 64 bytes"
    return SECRET_PREFIX + base64.b64encode(key).decode("ascii")


def check_secret(secret: str, pointer: str = "/secret") -> None:
    """Raise Invalid at `pointer` unless it is `whsec_` and the base64 of 24 to 64 bytes."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
        raise invalid(pointer, "must be whsec_ followed by the base64 of 24 to 64 bytes")


def encode_notice(notice: Notice, base_url: str) -> bytes:
    """Return the JSON body: `type`, `timestamp` and the facts under `data`, equal every time."""
    return msgspec.json.encode(
        {
            "type": f"alert.{notice.kind}",
            "timestamp": notice.at,
            "data": {
                "notification_id": notice.notification_id,
                "alert_id": notice.alert_id,
                "tenant_id": notice.tenant_id,
                "severity": notice.severity,
                "title": notice.title,
                "message": notice.message,
                "device_id": notice.device_id,
                "device_name": notice.device_name,
                "metric": notice.metric,
                "value": notice.value,
                "unit": notice.unit,
                "rule_name": notice.rule_name,
                "condition": notice.condition,
                "actor": notice.actor,
                "opened_at": notice.opened_at,
                "url": urljoin(base_url, notice.url),
            },
        }
    )


def sign(secrets: Sequence[str], message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the three headers that vouch for exactly these bytes.

    With several secrets (while one replaces another) there is a signature by each, and a
    receiver that knows any of them is content.
    """
    text = body.decode("utf-8")
    signatures = (Webhook(secret).sign(message_id, at.astimezone(UTC), text) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


class WebhookSender:
    """Delivers notices to tenants' URLs. `base_url` is the console's, for links."""

    def __init__(self, client: OutboundClient, base_url: str) -> None:
        self._client = client
        self._base_url = base_url

    async def check(self, url: str, pointer: str = "/url") -> None:
        """Raise Invalid at `pointer` unless the URL may be delivered to."""
        await self._client.guard.check(url, pointer)

    async def send(
        self, notice: Notice, url: str, secrets: Sequence[str], *, now: datetime
    ) -> Outcome:
        """Make one attempt, of ten seconds at most. Only a 2xx counts as delivered."""
        if not secrets:
            return Refused("the webhook has no secret to sign with")
        body = encode_notice(notice, self._base_url)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "iiot-platform-webhooks/1",
            **sign(secrets, str(notice.notification_id), now, body),
        }
        try:
            reply = await self._client.post(url, body, headers)
        except Blocked as blocked:
            return Refused(f"the URL {blocked}")
        except TooLarge as too_large:
            return Refused(too_large.detail)
        except Unreachable as unreachable:
            return Retry(str(unreachable))
        return read_reply(reply, now)


def read_reply(reply: Reply, now: datetime) -> Outcome:
    """Return what a reply means: a redirect or a 4xx may be mended, so it is tried again."""
    answer = f"HTTP {reply.status}"
    if 200 <= reply.status < 300:
        return Delivered(answer)
    if reply.status == 410:
        return Gone(answer)
    return Retry(answer, _asked_wait(reply.headers.get("retry-after"), now))


def _asked_wait(header: str | None, now: datetime) -> timedelta | None:
    """Return the wait in a Retry-After (seconds or a date), between none and a day."""
    if header is None:
        return None
    header = header.strip()
    try:
        if header.isascii() and header.isdigit():
            asked = timedelta(seconds=min(int(header[:10]), LONGEST_WAIT.total_seconds()))
        else:
            at = parsedate_to_datetime(header)
            asked = (at if at.tzinfo else at.replace(tzinfo=UTC)) - now
    except (ValueError, OverflowError):
        return None
    return min(max(asked, timedelta()), LONGEST_WAIT)
