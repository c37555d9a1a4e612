"""What alerting is configured by: environment variables that begin with ALERTING_."""

import ipaddress
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from libs.common.mail_settings import MailSettings
from libs.common.outbound import Endpoint
from libs.common.settings import config


def _endpoints(text: object) -> object:
    if not isinstance(text, str):
        return text
    return frozenset(_endpoint(part) for part in text.split(",") if part.strip())


def _endpoint(text: str) -> Endpoint:
    address, _, port = text.strip().rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"not ip:port: {text.strip()!r}")
    return ipaddress.ip_address(address.strip("[]")), int(port)


class Settings(MailSettings):
    """Alerting's settings."""

    model_config = config("ALERTING_")

    smtp_sender: str = Field("alerts@localhost.localdomain", validation_alias="SMTP_SENDER")
    """The address in From."""
    smtp_sender_name: str = Field("Plant alerts", validation_alias="SMTP_SENDER_NAME")

    webhook_allow: Annotated[frozenset[Endpoint], NoDecode, BeforeValidator(_endpoints)] = (
        frozenset()
    )
    """Exceptions from the guard, as `127.0.0.1:8025,[::1]:8025`: exact addresses of this network
    that webhooks may be sent to, http too. Empty: none, and so it should be."""

    delivers: bool = True
    """Whether this process delivers notifications; another may, while this one serves HTTP."""
    delivery_tick: timedelta = timedelta(seconds=2)
    """How often to look for due notifications that nobody was woken for."""
    lease: timedelta = Field(timedelta(seconds=30), ge=timedelta(seconds=20))
    """How long a worker has for one attempt (of 15 s at most) before another may take it over."""
    deliveries_at_once: int = Field(128, ge=1)
    """In one process: mostly waiting for others' servers."""
    deliveries_per_channel: int = Field(4, ge=1)
    """Of these, to one channel; to one that just failed a single one."""
    housekeeping: timedelta = timedelta(minutes=10)
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which events were handled."""
    firings_kept: timedelta = timedelta(days=30)
    """How long it is remembered that a firing has ended, in case its trigger comes late."""
