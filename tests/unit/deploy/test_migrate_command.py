import json

import pytest
from typer.testing import CliRunner, Result

from deploy.cli.main import app
from libs.common.db.roles import LOGIN_ROLES

ADMIN_URL = "postgresql://postgres:hush@db/iiot"
Migrated = list[tuple[str, dict[str, str]]]


@pytest.fixture
def migrated(monkeypatch: pytest.MonkeyPatch) -> Migrated:
    """What the migration was asked for, instead of a database."""
    calls: Migrated = []

    async def note(url: str, passwords: dict[str, str]) -> None:
        calls.append((url, passwords))

    monkeypatch.setattr("deploy.cli.migrate.migrate_all", note)
    monkeypatch.delenv("DATABASE_ADMIN_URL", raising=False)
    monkeypatch.delenv("DATABASE_PASSWORDS", raising=False)
    return calls


def migrate(**env: str) -> Result:
    return CliRunner().invoke(app, ["migrate"], env=env)


def test_it_migrates_with_the_passwords_given(migrated: Migrated) -> None:
    done = migrate(
        DATABASE_ADMIN_URL=ADMIN_URL, DATABASE_PASSWORDS=json.dumps({"ingest_rw": "quiet"})
    )
    assert done.exit_code == 0
    assert "up to date" in done.output
    assert migrated == [(ADMIN_URL, {"ingest_rw": "quiet"})]


def test_without_a_url_it_says_which_one_to_set(migrated: Migrated) -> None:
    refused = migrate()
    assert refused.exit_code == 1
    assert "set DATABASE_ADMIN_URL" in refused.output
    assert not migrated


def test_a_misspelt_role_is_refused_before_anything_happens(migrated: Migrated) -> None:
    refused = migrate(
        DATABASE_ADMIN_URL=ADMIN_URL, DATABASE_PASSWORDS=json.dumps({"ingest": "quiet"})
    )
    assert refused.exit_code == 1
    assert "ingest_rw" in refused.output
    assert not migrated


def test_an_error_repeats_no_password(migrated: Migrated) -> None:
    for passwords in ("quiet", json.dumps({"ingest_rw": {"quiet": 1}}), json.dumps({"x": "quiet"})):
        refused = migrate(DATABASE_ADMIN_URL=ADMIN_URL, DATABASE_PASSWORDS=passwords)
        assert refused.exit_code == 1, refused.output
        assert "quiet" not in refused.output
        assert "hush" not in refused.output
    assert not migrated


def test_an_unreachable_database_is_said_in_one_line(
    migrated: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(url: str, passwords: dict[str, str]) -> None:
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr("deploy.cli.migrate.migrate_all", fail)
    refused = migrate(DATABASE_ADMIN_URL=ADMIN_URL)
    assert refused.exit_code == 1
    assert "Is it running?" in refused.output
    assert "Traceback" not in refused.output


def test_every_role_may_be_given_a_password(migrated: Migrated) -> None:
    all_of_them = dict.fromkeys(LOGIN_ROLES, "quiet")
    migrate(DATABASE_ADMIN_URL=ADMIN_URL, DATABASE_PASSWORDS=json.dumps(all_of_them))
    assert migrated == [(ADMIN_URL, all_of_them)]
