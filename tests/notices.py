"""A notice to send: a pump's bearing runs hot."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from libs.common.severity import Severity
from services.alerting.domain.notice import Notice, NoticeKind

_OPENED = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)

_NOTICE = Notice(
    notification_id=UUID("0e7a3f0c-6f1e-4a55-9a55-000000000001"),
    alert_id=UUID("0e7a3f0c-6f1e-4a55-9a55-000000000002"),
    tenant_id=UUID("0e7a3f0c-6f1e-4a55-9a55-000000000003"),
    kind=NoticeKind.OPENED,
    severity=Severity.CRITICAL,
    title="Bearing runs hot",
    message="The bearing temperature rose above 90 °C.",
    url="/alerts/0e7a3f0c-6f1e-4a55-9a55-000000000002",
    opened_at=_OPENED,
    at=_OPENED,
    device_id=UUID("0e7a3f0c-6f1e-4a55-9a55-000000000004"),
    device_name="pump-2",
    metric="bearing_temperature",
    value=96.4,
    unit="°C",
    rule_name="Bearing temperature",
    condition="above 90 °C for 30 s",
)


def a_notice(**changes: Any) -> Notice:
    """Return the notice with some fields changed."""
    return replace(_NOTICE, **changes)
