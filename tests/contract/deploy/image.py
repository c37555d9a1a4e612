"""deploy/Dockerfile, read: what lies in an image without one being built."""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@dataclass
class Stage:
    """A stage: what it stands on, and its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """Return the arguments of every instruction of that word."""
        return [rest for given, rest in self.instructions if given == word]

    def last(self, word: str) -> str:
        """Return the arguments of the instruction that counts, or nothing."""
        return (self.all(word) or [""])[-1]


def stages() -> dict[str, Stage]:
    """Return the stages by name."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found.setdefault(name, Stage(name, base))
        elif stage is not None:
            stage.instructions.append((word, rest.strip()))
    return found


def lineage(target: str) -> list[Stage]:
    """Return a stage and those it stands on, the first first."""
    known = stages()
    line = [known[target]]
    while line[0].base in known:
        line.insert(0, known[line[0].base])
    return line


def copies(target: str, service: str) -> list[tuple[str, str]]:
    """Return what is copied from the repository into an image: sources and destinations."""
    return [
        (source, destination)
        for stage in lineage(target)
        for words in stage.all("COPY")
        if not words.startswith("--from=")
        for source, destination in [words.replace("${SERVICE}", service).split()]
    ]


def lay_out(target: str, service: str, folder: Path) -> Path:
    """Make a folder of what the image has in /app; return it."""
    for source, destination in copies(target, service):
        origin, goal = ROOT / source, folder / destination
        if origin.is_dir():
            shutil.copytree(
                origin, goal, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        else:
            goal = goal / origin.name if destination.endswith("/") else goal
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, goal)
    return folder
