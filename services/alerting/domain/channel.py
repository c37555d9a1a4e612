"""Where notices go: a mailbox, or somebody's web server."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from libs.common.severity import Severity

MOST_CHANNELS = 50
"""In one tenant. Every alert fans out to all of them."""


class ChannelKind(StrEnum):
    """How a channel carries a notice."""

    EMAIL = "email"
    WEBHOOK = "webhook"

    @property
    def tells_people(self) -> bool:
        """Whether people read it. Other systems want to hear what people need not."""
        return self is ChannelKind.EMAIL


@dataclass(frozen=True, slots=True)
class Email:
    """One mailbox."""

    address: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL that is posted to, signed by `secret` (`whsec_…`)."""

    url: str
    secret: str = field(repr=False)


Target = Email | Webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A way out of the platform that a tenant has set up. It carries what is at least so severe."""

    id: UUID
    tenant_id: UUID
    name: str
    target: Target
    is_enabled: bool
    min_severity: Severity
    created_at: datetime
    updated_at: datetime
    disabled_reason: str = ""
    """Why the platform switched it off; empty if a person did, or nobody."""
    version: int = 1

    @property
    def kind(self) -> ChannelKind:
        return ChannelKind.EMAIL if isinstance(self.target, Email) else ChannelKind.WEBHOOK

    def carries(self, severity: Severity) -> bool:
        """Whether notices of this severity go out here."""
        return self.is_enabled and severity >= self.min_severity
