"""Which limit holds for whom."""

from ipaddress import ip_network
from uuid import UUID, uuid4

import pytest

from services.gateway.domain.policy import Asking, CallerKind, Match, Per, Policy, is_below
from services.gateway.usecases.rate_limits import RateLimits

PLANT = uuid4()
ANN = uuid4()


def policy(name: str, requests: int | None = 10, **more: object) -> Policy:
    match = {k: v for k, v in more.items() if k in Match.__slots__}
    rest = {k: v for k, v in more.items() if k not in match}
    return Policy(
        id=uuid4(),
        name=name,
        match=Match(**match),  # type: ignore[arg-type]  # as the test gives them
        requests=requests,
        version=1,
        **rest,  # type: ignore[arg-type]  # as the test gives them
    )


def ask(path: str = "/api/v1/analytics/query", **more: object) -> Asking:
    given: dict[str, object] = {
        "kind": CallerKind.USER,
        "key": f"user:{ANN}",
        "method": "GET",
        "path": path,
        "address": "203.0.113.7",
        "tenant_id": PLANT,
        "subject": ANN,
        "roles": frozenset({"viewer"}),
        "plan": "free",
    }
    return Asking(**{**given, **more})  # type: ignore[arg-type]  # as the test gives them


def deciding(limits: RateLimits, asking: Asking) -> list[str]:
    return [limit.name for limit in limits.limits(asking)]


EVERYBODY = policy("everybody")
OF_KIND = policy("of-kind", kind=CallerKind.USER)
OF_PLAN = policy("of-plan", plan="free")
OF_ROLE = policy("of-role", role="viewer")
OF_METHOD = policy("of-method", methods=frozenset({"GET"}))
OF_PATH = policy("of-path", path="/api/v1/analytics")
OF_LONGER_PATH = policy("of-longer-path", path="/api/v1/analytics/{what}")
OF_PLAIN_PATH = policy("of-plain-path", path="/api/v1/analytics/query")
OF_TENANT = policy("of-tenant", tenant_id=PLANT)
OF_NETWORK = policy("of-network", None, networks=(ip_network("203.0.113.0/24"),))
OF_ANN = policy("of-ann", None, subject=ANN)
RISING = [EVERYBODY, OF_KIND, OF_PLAN, OF_ROLE, OF_METHOD, OF_PATH, OF_LONGER_PATH, OF_PLAIN_PATH, OF_TENANT, OF_NETWORK, OF_ANN]  # fmt: skip


@pytest.mark.parametrize("most", range(1, len(RISING) + 1))
def test_of_those_that_fit_the_most_specific_one_holds(most: int) -> None:
    limits = RateLimits([])
    limits.set(reversed(RISING[:most]))
    [found] = limits.deciding(ask())
    assert found is RISING[most - 1]


def test_what_does_not_fit_does_not_hold() -> None:
    limits = RateLimits([EVERYBODY])
    limits.set(RISING[1:])
    stranger = ask(
        "/api/v1/devices",
        kind=CallerKind.API_KEY,
        method="POST",
        address="198.51.100.1",
        tenant_id=uuid4(),
        subject=uuid4(),
        roles=frozenset(),
        plan=None,
    )
    assert deciding(limits, stranger) == ["everybody"]


def test_a_default_gives_way_to_its_like_set_at_run_time() -> None:
    limits = RateLimits(
        [Policy(id=UUID(int=1), name="a", match=Match(kind=CallerKind.USER), requests=5)]
    )
    limits.set([policy("b", kind=CallerKind.USER)])
    assert deciding(limits, ask()) == ["b"]


def test_a_tenant_can_only_tighten() -> None:
    limits = RateLimits([EVERYBODY])
    limits.set([policy("looser", 10_000, tenant_id=PLANT, by_platform=False, role="viewer")])
    assert deciding(limits, ask()) == ["everybody", "looser"]
    assert deciding(limits, ask(tenant_id=uuid4())) == ["everybody"]


def test_who_is_exempt_is_not_counted() -> None:
    limits = RateLimits([EVERYBODY])
    limits.set([OF_ANN])
    assert limits.limits(ask()) == ()


def test_a_burst_is_counted_by_the_second() -> None:
    limits = policy("n", 100, per=Per.HOUR, burst=5, cost=2).limits()
    assert [(x.name, x.requests, x.window_s, x.cost) for x in limits] == [
        ("n-burst", 5, 1, 2),
        ("n", 100, 3600, 2),
    ]
    assert limits[0].bucket != limits[1].bucket


@pytest.mark.parametrize(
    ("path", "pattern", "is_it"),
    [
        ("/api/v1/devices", "/api/v1/devices", True),
        ("/api/v1/devices/7", "/api/v1/devices", True),
        ("/api/v1/devices-x", "/api/v1/devices", False),
        ("/api/v1/devices/7/commands", "/api/v1/devices/{id}/commands", True),
        ("/api/v1/devices/7/commands/8", "/api/v1/devices/{}/commands", True),
        ("/api/v1/devices/7", "/api/v1/devices/{id}/commands", False),
    ],
)
def test_a_path_is_compared_part_by_part(path: str, pattern: str, is_it: bool) -> None:
    assert is_below(path, pattern) is is_it
