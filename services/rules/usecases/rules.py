"""What people do with rules; and what becomes of those whose device or tenant is no more."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from libs.common.db.erasure import erase_tenant
from libs.common.errors import Conflict, PreconditionFailed
from libs.common.events.rules import RuleChanged
from libs.common.events.usage import UsageCounted
from libs.common.places import check_in_reach, whole_tenant
from libs.common.quotas.terms import Resource
from services.rules.domain.rule import Definition, Rule
from services.rules.store.store import RulesStore
from services.rules.usecases.events import rule_cleared


async def create(
    store: RulesStore,
    definition: Definition,
    *,
    rule_id: UUID,
    enabled: bool,
    most: int,
    now: datetime,
) -> Rule:
    """Make a rule.

    Raises Invalid if its parts do not go together, Conflict if there are `most`, QuotaExceeded if
    there are as many as the tenant's plan allows, NotFound if its device lies beyond the caller's
    reach.
    """
    definition.check()
    await check_in_reach(store.session, store.tenant_id, definition.device_id)
    await store.quotas.take_turn(Resource.RULES)
    async with whole_tenant(store.session):
        count = await store.rules.count() + 1
    await store.quotas.check(Resource.RULES, count)
    if count > most:
        raise Conflict(f"a tenant has {most} rules at most")
    rule = Rule(
        tenant_id=store.tenant_id,
        id=rule_id,
        definition=definition,
        enabled=enabled,
        version=1,
        created_at=now,
        updated_at=now,
    )
    await store.rules.add(rule)
    _say_changed(store, rule, "created", now)
    _say_count(store, count, now)
    return rule


async def redefine(
    store: RulesStore,
    rule_id: UUID,
    definition: Definition,
    *,
    enabled: bool | None,
    version: int | None,
    now: datetime,
) -> Rule:
    """Give a rule another definition; `enabled` None leaves that as it is.

    A firing goes on if the new definition would fire by the same points, and is cleared otherwise.
    Raises NotFound, Invalid, and PreconditionFailed if `version` is given and not the present one.
    """
    definition.check()
    await check_in_reach(store.session, store.tenant_id, definition.device_id)
    rule = await store.rules.get(rule_id, lock=True)
    _check_version(rule, version)
    changed = rule.redefined(
        definition, enabled=rule.enabled if enabled is None else enabled, now=now
    )
    if rule.enabled and not changed.enabled:
        await _end_firings(store, rule, "rule_disabled", now)
    elif not definition.watches_like(rule.definition):
        await _end_firings(store, rule, "rule_changed", now)
    if not (definition.watches_like(rule.definition) and changed.enabled):
        await store.rules.reset(
            rule.id,
            same_series=(definition.device_id, definition.metric)
            == (rule.definition.device_id, rule.definition.metric),
        )
    await store.rules.update(changed)
    _say_changed(store, changed, "updated", now)
    return changed


async def enable(store: RulesStore, rule_id: UUID, *, now: datetime) -> Rule:
    """Put a rule into force; one that is stays as it is. Raises NotFound."""
    rule = await store.rules.get(rule_id, lock=True)
    if rule.enabled:
        return rule
    enabled = replace(rule, enabled=True, version=rule.version + 1, updated_at=now)
    await store.rules.update(enabled)
    _say_changed(store, enabled, "enabled", now)
    return enabled


async def disable(store: RulesStore, rule_id: UUID, *, now: datetime) -> Rule:
    """Take a rule out of force and clear its firings; one that is not stays as it is. Raises NotFound."""
    rule = await store.rules.get(rule_id, lock=True)
    if not rule.enabled:
        return rule
    await _end_firings(store, rule, "rule_disabled", now)
    await store.rules.reset(rule.id, same_series=True)
    disabled = replace(rule, enabled=False, version=rule.version + 1, updated_at=now)
    await store.rules.update(disabled)
    _say_changed(store, disabled, "disabled", now)
    return disabled


async def delete(store: RulesStore, rule_id: UUID, *, version: int | None, now: datetime) -> None:
    """Remove a rule and clear its firings. Raises NotFound and PreconditionFailed as `redefine`."""
    await store.quotas.take_turn(Resource.RULES)
    rule = await store.rules.get(rule_id, lock=True)
    _check_version(rule, version)
    await _remove(store, rule, "rule_deleted", now)
    _say_count(store, await store.rules.count(), now)


async def drop_device(store: RulesStore, device_id: UUID, *, now: datetime) -> None:
    """Remove the rules of a device that is no more, and clear their firings."""
    await store.quotas.take_turn(Resource.RULES)
    rules = await store.rules.of_device(device_id)
    for rule in rules:
        await _remove(store, rule, "device_deleted", now)
    if rules:
        _say_count(store, await store.rules.count(), now)


async def drop_tenant(store: RulesStore, *, now: datetime) -> None:
    """Erase all that is kept of a tenant that is no more.

    No firing is said to be cleared: whoever keeps one erases the tenant as well, and would keep
    that word of it.
    """
    # Locked first, so that none of them is just firing.
    for rule in await store.rules.all():
        _say_changed(store, rule, "deleted", now)
    await erase_tenant(store, "rules")


async def _remove(store: RulesStore, rule: Rule, reason: str, now: datetime) -> None:
    await _end_firings(store, rule, reason, now)
    await store.rules.remove(rule.id)
    _say_changed(store, rule, "deleted", now)


async def _end_firings(store: RulesStore, rule: Rule, reason: str, now: datetime) -> None:
    for device_id, fired_at in await store.rules.firings(rule.id):
        store.emit(
            rule_cleared(rule, device_id, fired_at, reason=reason, ts=now, value=None, at=now)
        )


def _say_count(store: RulesStore, count: int, now: datetime) -> None:
    store.emit(
        UsageCounted(
            tenant_id=store.tenant_id,
            at=now,
            day=now.astimezone(UTC).date(),
            resource=Resource.RULES.value,
            how="standing",
            amount=count,
        )
    )


def _say_changed(store: RulesStore, rule: Rule, change: str, now: datetime) -> None:
    store.emit(RuleChanged(tenant_id=rule.tenant_id, at=now, rule_id=rule.id, change=change))


def _check_version(rule: Rule, version: int | None) -> None:
    if version is not None and version != rule.version:
        raise PreconditionFailed(f"the rule is at version {rule.version} by now")
