"""The limits that hold at this process, and how they are set at run time."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from libs.common.errors import Conflict, Forbidden, invalid
from libs.common.events.gateway import RateLimitsChanged
from services.gateway.domain.limit import Limit
from services.gateway.domain.policy import (
    INSTALLATION,
    Asking,
    CallerKind,
    Policy,
    by_specificity,
    decisive,
    is_below,
)
from services.gateway.store.store import GatewayStore

HERE = "/api/v1/rate-limits"
"""Where limits are set."""
REMEMBERED = 20_000
MOST = 200
"""Policies of a tenant, or of the installation."""
UNKNOWN_TENANT = frozenset({CallerKind.DEVICE, CallerKind.ANONYMOUS})
"""Of these the gateway does not know the tenant."""


class RateLimits:
    """Knows which limits hold for a request.

    Of the platform's policies the most specific one decides how much there is. Of those a tenant
    made for itself the most specific is counted as well: it can only tighten.
    """

    def __init__(self, defaults: Sequence[Policy]) -> None:
        self._defaults = tuple(defaults)
        self._by_platform: dict[UUID, list[Policy]] = {}
        self._by_tenant: dict[UUID, list[Policy]] = {}
        self._candidates: dict[
            tuple[UUID | None, CallerKind], tuple[tuple[Policy, ...], tuple[Policy, ...]]
        ] = {}
        self._counted: dict[tuple[UUID, UUID | None], tuple[Limit, ...]] = {}

    def set(self, policies: Iterable[Policy]) -> None:
        """Let these hold from now on, besides the defaults."""
        self._by_platform, self._by_tenant = {}, {}
        for policy in policies:
            of = self._by_platform if policy.by_platform else self._by_tenant
            of.setdefault(policy.tenant_id, []).append(policy)
        self._candidates.clear()
        self._counted.clear()

    def deciding(self, asking: Asking) -> list[Policy]:
        """Return the policies that hold for a request: the platform's, and the tenant's own."""
        by_platform, by_tenant = self._of(asking.tenant_id, asking.kind)
        found = [decisive(by_platform, asking), _own(by_tenant, asking)]
        return [policy for policy in found if policy is not None]

    def limits(self, asking: Asking) -> tuple[Limit, ...]:
        """Return what a request is counted against."""
        by_platform, by_tenant = self._of(asking.tenant_id, asking.kind)
        first = decisive(by_platform, asking)
        second = _own(by_tenant, asking) if by_tenant else None
        if first is None:
            return () if second is None else second.limits()
        pair = first.id, None if second is None else second.id
        counted = self._counted.get(pair)
        if counted is None:
            counted = (*first.limits(), *(second.limits() if second else ()))
            self._counted[pair] = counted
        return counted

    def _of(
        self, tenant_id: UUID | None, kind: CallerKind
    ) -> tuple[tuple[Policy, ...], tuple[Policy, ...]]:
        """Return the platform's and the tenant's own policies that may fit, most specific first."""
        candidates = self._candidates.get((tenant_id, kind))
        if candidates is None:
            by_platform = [*self._defaults, *self._by_platform.get(INSTALLATION, ())]
            by_tenant: list[Policy] = []
            if tenant_id is not None:
                by_platform += self._by_platform.get(tenant_id, ())
                by_tenant += self._by_tenant.get(tenant_id, ())
            candidates = (
                by_specificity(p for p in by_platform if p.match.kind in {None, kind}),
                by_specificity(p for p in by_tenant if p.match.kind in {None, kind}),
            )
            if len(self._candidates) >= REMEMBERED:
                self._candidates.clear()
            self._candidates[tenant_id, kind] = candidates
        return candidates


def _own(by_tenant: Sequence[Policy], asking: Asking) -> Policy | None:
    # Who has limited itself to nothing must be able to undo it.
    return None if is_below(asking.path, HERE) else decisive(by_tenant, asking)


async def create(store: GatewayStore, policy: Policy, *, at: datetime) -> None:
    """Add a policy. Raises Invalid, Forbidden, or Conflict if its name is taken."""
    _check(policy)
    if await store.rate_limits.count() >= MOST:
        raise Conflict(f"there are at most {MOST} rate limits")
    await store.rate_limits.add(policy, at)
    store.emit(RateLimitsChanged(tenant_id=store.tenant_id, at=at))


async def replace(store: GatewayStore, policy: Policy, *, at: datetime) -> None:
    """Replace a policy. Raises NotFound, and as `create`."""
    _check(policy)
    _check_is_theirs(await store.rate_limits.get(policy.id), by_platform=policy.by_platform)
    await store.rate_limits.update(policy, at)
    store.emit(RateLimitsChanged(tenant_id=store.tenant_id, at=at))


async def remove(store: GatewayStore, policy_id: UUID, *, by_platform: bool, at: datetime) -> None:
    """Remove a policy. Raises NotFound, or Forbidden if it is the platform's."""
    _check_is_theirs(await store.rate_limits.get(policy_id), by_platform=by_platform)
    await store.rate_limits.remove(policy_id)
    store.emit(RateLimitsChanged(tenant_id=store.tenant_id, at=at))


def _check_is_theirs(policy: Policy, *, by_platform: bool) -> None:
    if policy.by_platform and not by_platform:
        raise Forbidden("this limit was set by the platform's administrators")


def _check(policy: Policy) -> None:
    match = policy.match
    if policy.requests is None:
        if not policy.by_platform:
            raise Forbidden("only the platform's administrators exempt somebody from limits")
        if match.subject is None and not match.networks:
            raise invalid("#/match", "must name who is exempt: a principal_id, or networks")
        if policy.burst is not None:
            raise invalid("#/burst", "is of no use without requests")
        return
    if policy.cost > policy.requests:
        raise invalid("#/cost", "must not be more than there is")
    if policy.burst is not None and not policy.cost <= policy.burst <= policy.requests:
        raise invalid("#/burst", "must be between the cost and the requests")
    if policy.tenant_id != INSTALLATION and match.kind in UNKNOWN_TENANT:
        raise invalid(
            "#/match/kind", "cannot be limited for one tenant: it is not known yet whose it is"
        )
