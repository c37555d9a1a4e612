"""The built-in roles, and how their patterns are read."""

import re
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.auth.principal import Principal
from libs.common.auth.roles import BUILT_IN, PERMISSIONS, covers, is_pattern

ROOT = Path(__file__).parents[3]
RESOURCES = sorted({permission.partition(":")[0] for permission in PERMISSIONS})
ACTIONS = sorted({permission.partition(":")[2] for permission in PERMISSIONS})
PATTERNS = [
    "*",
    *[f"{resource}:*" for resource in RESOURCES],
    *[f"*:{action}" for action in ACTIONS],
    *PERMISSIONS,
]


def who(*permissions: str) -> Principal:
    return Principal(subject=UUID(int=1), tenant_id=UUID(int=2), permissions=frozenset(permissions))


def allowed(role: str) -> set[str]:
    """What a role lets one do, of all there is."""
    return {p for p in PERMISSIONS if who(*BUILT_IN[role].permissions).may(p)}


READS = {permission for permission in PERMISSIONS if permission.endswith(":read")}


def test_an_admin_may_everything() -> None:
    assert allowed("admin") == set(PERMISSIONS)


def test_an_auditor_reads_everything_and_changes_nothing() -> None:
    assert allowed("auditor") == READS


def test_a_viewer_reads_how_the_plant_runs_and_not_how_it_is_administered() -> None:
    assert allowed("viewer") == READS - {
        "audit:read",
        "users:read",
        "api_keys:read",
        "rate_limits:read",
        "identity_providers:read",
    }


def test_an_operator_answers_alerts_and_sends_commands() -> None:
    assert allowed("operator") == allowed("viewer") | {
        "users:read",
        "alerts:acknowledge",
        "alerts:resolve",
        "commands:send",
    }


def test_a_developer_builds_but_governs_nobody() -> None:
    developer = allowed("developer")
    assert developer > allowed("viewer")
    for resource in ("devices", "telemetry", "rules", "ml"):
        assert f"{resource}:write" in developer
    for resource in ("users", "roles", "tenants", "audit", "retention"):
        assert not {p for p in developer if p.startswith(f"{resource}:")} - READS


@pytest.mark.parametrize("role", BUILT_IN)
def test_a_built_in_role_names_only_permissions_that_exist(role: str) -> None:
    assert all(is_pattern(pattern) for pattern in BUILT_IN[role].permissions)
    assert BUILT_IN[role].description


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_known_if_it_holds_anything(pattern: str) -> None:
    assert is_pattern(pattern)


@pytest.mark.parametrize(
    "text",
    ["", ":", "*:*", "alerts", "alerts:", ":read", "alerts:explode", "moons:*", "*:explode",
     "alerts:read:x", "tenancy:internal", "platform:admin", "**", "Alerts:read", " alerts:read"],
)  # fmt: skip
def test_what_holds_nothing_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)


@given(held=st.sets(st.sampled_from(PATTERNS), max_size=4), wanted=st.sampled_from(PATTERNS))
def test_who_is_covered_can_do_all_that_the_pattern_allows(held: set[str], wanted: str) -> None:
    if covers(held, wanted):
        for permission in PERMISSIONS:
            if who(wanted).may(permission):
                assert who(*held).may(permission)
    # A permission itself is covered exactly when it is held.
    if wanted in PERMISSIONS:
        assert covers(held, wanted) == who(*held).may(wanted)


def test_actions_one_by_one_do_not_make_the_actions_to_come() -> None:
    assert not covers([p for p in PERMISSIONS if p.startswith("alerts:")], "alerts:*")
    assert not covers(["*:read", "alerts:*"], "*")


def test_every_permission_a_route_asks_for_can_be_given_to_someone() -> None:
    asked = {
        permission
        for file in (ROOT / "services").rglob("api/*.py")
        for permission in re.findall(r'\bPermission\("([^"]+)"\)', file.read_text())
    }
    assert {"users:write", "devices:read"} <= asked
    assert asked - set(PERMISSIONS) == set()
