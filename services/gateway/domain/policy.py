"""Which limit holds for whom and what: policies, and which of them is the most specific."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from libs.common.addresses import Network, is_within
from services.gateway.domain.limit import Limit

INSTALLATION = UUID(int=0)
"""Whose the policies are that hold in all tenants."""


class CallerKind(StrEnum):
    """What asks. Anonymous is whoever nobody vouches for: before login, or with a wrong credential."""

    USER = "user"
    API_KEY = "api_key"
    DEVICE = "device"
    ANONYMOUS = "anonymous"


class Per(StrEnum):
    """The window in which requests are counted. It moves."""

    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"

    @property
    def seconds(self) -> int:
        """How long it is."""
        return {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[self.value]


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for what. `key` names the caller: what it asks for is counted under that."""

    kind: CallerKind
    key: str
    method: str
    path: str
    address: str
    tenant_id: UUID | None = None
    subject: UUID | None = None
    roles: frozenset[str] = frozenset()
    plan: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a policy is about. What is left out matches everything."""

    path: str | None = None
    """All below a path; `{}` or `{name}` stands for any one part: `/api/v1/devices/{id}/commands`."""
    methods: frozenset[str] = frozenset()
    role: str | None = None
    plan: str | None = None
    kind: CallerKind | None = None
    subject: UUID | None = None
    """One caller alone, by the id of its principal."""
    networks: tuple[Network, ...] = ()
    """Callers from there."""

    def fits(self, asking: Asking) -> bool:
        """Whether it is about this."""
        return (
            (self.kind is None or self.kind is asking.kind)
            and (not self.methods or asking.method in self.methods)
            and (self.role is None or self.role in asking.roles)
            and (self.plan is None or self.plan == asking.plan)
            and (self.subject is None or self.subject == asking.subject)
            and (self.path is None or is_below(asking.path, self.path))
            and (not self.networks or is_within(asking.address, self.networks))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A limit for what matches; without `requests` there is none: who matches is exempt.

    It is of one tenant, or of the installation. Those `by_platform` decide how much there is; those
    that a tenant makes for itself are counted besides, so that they can only tighten.
    """

    id: UUID
    tenant_id: UUID = INSTALLATION
    by_platform: bool = True
    name: str
    match: Match = field(default_factory=Match)
    requests: int | None = None
    per: Per = Per.MINUTE
    burst: int | None = None
    """How many of the requests may come within a second. Absent: all of them."""
    cost: int = 1
    version: int = 0
    """0: a default of the installation's settings, which gives way to what was set at run time."""
    updated_at: datetime | None = None

    @property
    def specificity(self) -> tuple[int, ...]:
        """By how much it is about less than others: the greatest that fits is the one that holds.

        Whom it names comes first, then the tenant, the path (the longer one), methods, role, plan and kind.
        """
        match = self.match
        parts = [] if match.path is None else [p for p in match.path.split("/") if p]
        return (
            int(match.subject is not None),
            max((network.prefixlen + 1 for network in match.networks), default=0),
            int(self.tenant_id != INSTALLATION),
            len(parts),
            sum(not _is_placeholder(part) for part in parts),
            -len(match.methods) if match.methods else -100,
            int(match.role is not None),
            int(match.plan is not None),
            int(match.kind is not None),
            int(self.version > 0),
        )

    def limits(self) -> tuple[Limit, ...]:
        """Return what is counted: the limit, and before it the burst; nothing for who is exempt."""
        if self.requests is None:
            return ()
        whole = Limit(self.name, self.requests, self.per.seconds, self.cost, str(self.id))
        if self.burst is None:
            return (whole,)
        burst = Limit(f"{self.name}-burst", self.burst, 1, self.cost, f"{self.id}:burst")
        return (burst, whole)


def decisive(policies: Iterable[Policy], asking: Asking) -> Policy | None:
    """Return the first that fits; give them most specific first."""
    for policy in policies:
        if policy.match.fits(asking):
            return policy
    return None


def by_specificity(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Return the policies, most specific first; of equals the one whose name comes first."""
    named = sorted(policies, key=lambda policy: (policy.name, policy.id))
    return tuple(sorted(named, key=lambda policy: policy.specificity, reverse=True))


def is_below(path: str, pattern: str) -> bool:
    """Whether a path is the pattern's or below it, compared part by part."""
    if "{" not in pattern:
        return path == pattern or path.startswith(pattern + "/")
    wanted, given = pattern.split("/"), path.split("/")
    return len(given) >= len(wanted) and all(
        _is_placeholder(want) or want == part for want, part in zip(wanted, given, strict=False)
    )


def _is_placeholder(part: str) -> bool:
    return part.startswith("{") and part.endswith("}")
