import base64
import hashlib
import json
import re
import stat
from pathlib import Path

import pytest

from deploy import secrets
from deploy.secrets import PASSWORDS, ROLES, SERVICES, main, rabbitmq_definitions, write_secrets
from libs.common.bus.rabbit_topology import DEAD, EVENTS, TELEMETRY, UNROUTED
from libs.common.db import roles


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_knows_every_service_and_every_role_of_the_cluster() -> None:
    # It must run where nothing but Python is installed, so it keeps lists of its own.
    assert set(SERVICES) == set(roles.SERVICES)
    # The role of the edge's log is the one a cluster has no use for.
    assert set(ROLES) == roles.LOGIN_ROLES.keys() - {roles.BUS}


def test_nobody_else_on_the_machine_can_reach_a_secret(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    write_secrets(folder)
    assert mode(folder) == 0o700
    assert mode(folder / PASSWORDS) == 0o600


def test_a_container_can_read_what_is_mounted_into_it(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    for file in tmp_path.iterdir():
        if file.name != PASSWORDS:
            assert mode(file) & 0o444 == 0o444, file.name


def test_run_again_it_changes_nothing(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    before = contents(tmp_path)
    assert write_secrets(tmp_path) == 0
    assert contents(tmp_path) == before


def test_a_file_that_was_lost_comes_back_as_it_was(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "ingest_database_url").unlink()
    assert write_secrets(tmp_path) == 1
    assert contents(tmp_path) == before


def test_a_password_that_is_removed_is_drawn_anew_wherever_it_stands(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    before = contents(tmp_path)
    known = json.loads(before[PASSWORDS])
    old = known.pop("ingest_rw")
    (tmp_path / PASSWORDS).write_text(json.dumps(known))
    write_secrets(tmp_path)
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {
        PASSWORDS,
        "ingest_database_url",
        "database_passwords",
    }
    assert not [name for name, text in after.items() if old in text]


def test_what_people_filled_in_stays(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    (tmp_path / "alerting_smtp_password").write_text("from the mail provider")
    write_secrets(tmp_path)
    assert (tmp_path / "alerting_smtp_password").read_text() == "from the mail provider"


def test_no_two_passwords_are_alike_and_none_needs_quoting(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    passwords = json.loads((tmp_path / PASSWORDS).read_text())
    assert len(set(passwords.values())) == len(passwords)
    assert all(re.fullmatch("[0-9a-f]+", password) for password in passwords.values())
    short = {name for name, password in passwords.items() if len(password) < 24}
    assert all(name.endswith("_salt") for name in short)


def test_nothing_of_it_is_ever_committed(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_a_broken_file_is_named_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PASSWORDS).write_text('{"postgres": ')
    assert main([str(tmp_path)]) == 1
    assert "run again" in capsys.readouterr().out
    assert (tmp_path / PASSWORDS).read_text() == '{"postgres": '


@pytest.fixture
def passwords(tmp_path: Path) -> dict[str, str]:
    write_secrets(tmp_path)
    known: dict[str, str] = json.loads((tmp_path / PASSWORDS).read_text())
    return known


def test_the_broker_is_given_hashes_not_passwords(passwords: dict[str, str]) -> None:
    definitions = json.dumps(rabbitmq_definitions(passwords))
    assert passwords["rabbitmq_rules"] not in definitions
    (hashed,) = [
        base64.b64decode(user["password_hash"])
        for user in json.loads(definitions)["users"]
        if user["name"] == "rules"
    ]
    salt, digest = hashed[:4], hashed[4:]
    assert digest == hashlib.sha256(salt + passwords["rabbitmq_rules"].encode()).digest()


def test_a_service_may_use_the_exchanges_and_its_own_queues_alone(
    passwords: dict[str, str],
) -> None:
    permissions = json.loads(json.dumps(rabbitmq_definitions(passwords)))["permissions"]
    assert {entry["user"] for entry in permissions} == set(roles.SERVICES)
    for entry in permissions:
        user = entry["user"]
        stranger = "rules" if user != "rules" else "ml"
        for right in ("configure", "write", "read"):
            for name in (EVENTS, TELEMETRY, DEAD, UNROUTED, f"{user}.events", "amq.gen-a1"):
                assert re.search(entry[right], name), (user, right, name)
            for name in (f"{stranger}.events", f"x{user}.events", user, "amq.topic", "iiotx"):
                assert not re.search(entry[right], name), (user, right, name)


def test_it_needs_nothing_but_python() -> None:
    source = Path(secrets.__file__).read_text()
    imported = set(re.findall(r"^(?:from|import) ([\w.]+)", source, re.MULTILINE))
    assert not [name for name in imported if name.startswith(("libs", "services", "pydantic"))]
