"""What is said of a firing. The same firing says the same ids, however often it is worked out."""

from datetime import datetime
from uuid import UUID, uuid5

from libs.common.events.rules import RuleCleared, RuleTriggered
from services.rules.domain.firing import firing_id
from services.rules.domain.rule import Rule


def rule_triggered(
    rule: Rule, device_id: UUID, fired_at: int, *, ts: datetime, value: float, at: datetime
) -> RuleTriggered:
    """Say that the device's point at `fired_at` (µs since 1970 UTC, the same as `ts`) broke the rule."""
    firing = firing_id(rule.id, device_id, fired_at)
    definition = rule.definition
    return RuleTriggered(
        id=uuid5(firing, RuleTriggered.type),
        tenant_id=rule.tenant_id,
        at=at,
        firing_id=firing,
        rule_id=rule.id,
        rule_name=definition.name,
        rule_version=rule.version,
        device_id=device_id,
        severity=definition.severity,
        condition=definition.in_words(),
        metric=definition.metric,
        value=value,
        threshold=definition.condition.value,
        operator=definition.condition.operator,
        ts=ts,
    )


def rule_cleared(
    rule: Rule,
    device_id: UUID,
    fired_at: int,
    *,
    reason: str,
    ts: datetime,
    value: float | None,
    at: datetime,
) -> RuleCleared:
    """Say that the firing that the device's point at `fired_at` began has ended."""
    firing = firing_id(rule.id, device_id, fired_at)
    definition = rule.definition
    return RuleCleared(
        id=uuid5(firing, RuleCleared.type),
        tenant_id=rule.tenant_id,
        at=at,
        firing_id=firing,
        rule_id=rule.id,
        rule_name=definition.name,
        rule_version=rule.version,
        device_id=device_id,
        severity=definition.severity,
        reason=reason,
        metric=definition.metric,
        value=value,
        threshold=definition.condition.value,
        operator=definition.condition.operator,
        ts=ts,
    )
