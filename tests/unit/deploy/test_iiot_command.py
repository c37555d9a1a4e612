"""The command `iiot`, as a shell calls it."""

import os
import subprocess
from pathlib import Path

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
