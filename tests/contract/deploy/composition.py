"""docker-compose.yml as Compose itself understands it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"
BINARY = Path(sys.executable).parent / "docker-compose"

# Compose's own shape: tests look into it freely.
Composition = dict[str, Any]


def composed(folder: Path, *overlays: str, env: str = "") -> Composition:
    """Return the file, resolved away from this checkout's .env. Fails if Compose finds a fault."""
    (folder / "deploy").mkdir(parents=True, exist_ok=True)
    shutil.copy(COMPOSE, folder)
    for file in (ROOT / "deploy").glob("*.*"):
        shutil.copy(file, folder / "deploy")
    (folder / ".env").write_text(env)
    words = [str(BINARY)]
    for file_name in ("docker-compose.yml", *overlays):
        words += ["-f", file_name]
    done = subprocess.run(
        [*words, "config", "--format", "json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"Compose warns: {done.stderr}"
    resolved: Composition = json.loads(done.stdout)
    return resolved


def secrets_of(composition: Composition, name: str) -> dict[str, str]:
    """Return a container's secrets: file names in /run/secrets to file names in the folder."""
    files = composition["secrets"]
    return {
        Path(entry.get("target") or entry["source"]).name: Path(files[entry["source"]]["file"]).name
        for entry in composition["services"][name].get("secrets", [])
    }
