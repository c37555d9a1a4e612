"""The one who carries notices: knows for each kind of channel how."""

import asyncio
from datetime import datetime, timedelta

import structlog

from libs.common.mail import check_address
from services.alerting.adapters.email import EmailSender
from services.alerting.adapters.webhook import WebhookSender
from services.alerting.domain.channel import Channel, Email, Target, Webhook
from services.alerting.domain.notice import Notice
from services.alerting.domain.outcome import Outcome, Retry

log = structlog.get_logger(__name__)

TIME_LIMIT = timedelta(seconds=15)


class Courier:
    """Carries notices to channels. `mail` is None where no mail server is configured."""

    def __init__(
        self,
        mail: EmailSender | None,
        webhooks: WebhookSender,
        *,
        time_limit: timedelta = TIME_LIMIT,
    ) -> None:
        self._mail = mail
        self._webhooks = webhooks
        self._time_limit_s = time_limit.total_seconds()

    async def check(self, target: Target) -> None:
        """Raise Invalid, pointing into `config`, unless notices may be sent there."""
        match target:
            case Email(address):
                check_address(address, "#/config/address")
            case Webhook(url, _):
                await self._webhooks.check(url, "#/config/url")

    async def send(self, channel: Channel, notice: Notice, *, now: datetime) -> Outcome:
        """Make one attempt, of fifteen seconds at most, and say how it ended; never raises."""
        try:
            async with asyncio.timeout(self._time_limit_s):
                return await self._send(channel.target, notice, now)
        except TimeoutError:
            return Retry(f"no answer within {self._time_limit_s:g} s")
        except Exception:
            # A fault of ours. The notice waits for a release that can send it.
            log.exception("could not send", channel=str(channel.id), kind=channel.kind.value)
            return Retry("the platform could not send it")

    async def _send(self, target: Target, notice: Notice, now: datetime) -> Outcome:
        match target:
            case Email(address):
                if self._mail is None:
                    return Retry("no mail server is configured")
                return await self._mail.send(notice, address, now=now)
            case Webhook(url, secret):
                return await self._webhooks.send(notice, url, [secret], now=now)
