"""What every service says for the audit trail: who did what, and what that changed."""

from typing import Any, ClassVar, Literal
from uuid import UUID

import msgspec

from libs.common.events.base import Event


class AuditActor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who acted, and from where. `kind` is user, api_key, service, or nobody that is known."""

    kind: str
    id: UUID | None = None
    session_id: UUID | None = None
    request_id: str | None = None
    address: str | None = None
    user_agent: str | None = None


NOBODY = AuditActor(kind="nobody")


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was done, or was refused.

    `action` is `<resource>.<what>`; `before` and `after` hold what changed, nothing of it secret.
    """

    action: str
    resource: str
    resource_id: str | None = None
    label: str | None = None
    outcome: Literal["ok", "denied", "failed"] = "ok"
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    detail: dict[str, Any] | None = None


class AuditRecorded(Event, frozen=True, kw_only=True):
    """Something was done that the trail keeps. What one transaction changed, in order; 200 at most."""

    type: ClassVar[str] = "audit.recorded.v1"
    source: ClassVar[str] = "audit"
    service: str
    actor: AuditActor
    entries: list[AuditEntry]
