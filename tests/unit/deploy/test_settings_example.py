import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.cli.settings import example, settings_classes, settings_of
from libs.common.db.roles import SERVICES

ROOT = Path(__file__).parents[3]
CLASSES = settings_classes()
# What must be given, whatever it is.
GIVEN = "postgresql://somebody:something@host/iiot"


def test_the_example_says_what_the_code_says() -> None:
    """Stale? Run `python -m deploy.cli settings --write`."""
    assert (ROOT / ".env.example").read_text() == example()


def test_every_service_is_in_it() -> None:
    assert set(CLASSES) == set(SERVICES)


def test_it_says_what_a_setting_is_for_also_where_the_protocol_declares_it() -> None:
    meanings = {setting.name: setting.meaning for setting in settings_of(CLASSES["ingest"])}
    assert meanings["INGEST_WRITER"] == "Whether this process writes the historian."
    assert meanings["INGEST_COAP_PORT"].startswith("Where devices speak CoAP")


def test_copied_as_it_is_it_changes_nothing() -> None:
    lines = [line for line in example().splitlines() if line]
    assert all(line.startswith("#") for line in lines)


def test_no_setting_is_there_twice() -> None:
    names = re.findall(r"^#([A-Z0-9_]+)=", example(), re.MULTILINE)
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("service", CLASSES)
def test_the_defaults_it_gives_are_the_defaults(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CLASSES[service]
    listed = settings_of(settings)
    for setting in listed:
        monkeypatch.delenv(setting.name, raising=False)
        if setting.required:
            monkeypatch.setenv(setting.name, GIVEN)
    by_default = settings()
    for setting in listed:
        if setting.default is not None:
            monkeypatch.setenv(setting.name, setting.default)
    assert settings() == by_default


@pytest.mark.parametrize("service", CLASSES)
def test_each_name_it_gives_is_one_that_the_service_reads(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: type[BaseSettings] = CLASSES[service]
    for setting in settings_of(settings):
        monkeypatch.setenv(setting.name, "anything")
    read = {str(name) for name in _fields_from_environment(settings)}
    assert read == set(settings.model_fields)


def test_a_stale_example_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.cli.main.EXAMPLE", tmp_path / ".env.example")
    run = CliRunner()
    refused = run.invoke(app, ["settings", "--check"])
    assert refused.exit_code == 1
    assert "iiot settings --write" in refused.output
    assert run.invoke(app, ["settings", "--write"]).exit_code == 0
    assert run.invoke(app, ["settings", "--check"]).exit_code == 0


def _fields_from_environment(settings: type[BaseSettings]) -> set[str]:
    """Return the fields for which the settings' own reader finds something in the environment."""
    from pydantic_settings import EnvSettingsSource

    source = EnvSettingsSource(settings)
    return {
        name
        for name, field in settings.model_fields.items()
        if source.get_field_value(field, name)[0] is not None
    }
