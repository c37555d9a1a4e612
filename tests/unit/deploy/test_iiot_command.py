"""The command `iiot`, as a shell calls it."""

import os
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from deploy.cli.main import app

COMMAND = Path(__file__).parents[3] / "deploy" / "iiot"


def test_it_runs_from_any_folder_and_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "a folder" / "iiot"
    link.parent.mkdir()
    link.symlink_to(COMMAND)
    answer = subprocess.run(
        [link, "--help"],
        check=False,
        cwd=link.parent,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Usage: iiot" in answer.stdout
    for command in ("simulate", "migrate", "settings", "dead-letters"):
        assert command in answer.stdout


def test_a_tenants_life_has_a_command_for_each_step() -> None:
    answer = CliRunner().invoke(app, ["tenants", "--help"])
    assert answer.exit_code == 0
    for command in ("create", "list", "show", "usage", "suspend", "resume", "delete"):
        assert command in answer.stdout
        assert CliRunner().invoke(app, ["tenants", command, "--help"]).exit_code == 0
