"""What a local platform remembers between starts, besides its database: who the first admin is."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

ADMIN_EMAIL = "admin@localhost"


@dataclass(slots=True)
class State:
    """Kept in a file that only its owner may read."""

    file: Path
    admin_email: str
    admin_password: str
    hook_secret: str = ""
    """What the demonstration's webhook is signed with; empty until there is one."""

    @staticmethod
    def load(file: Path) -> "State":
        """Read the file, or make it with a fresh password."""
        if file.exists():
            return State(file, **json.loads(file.read_text()))
        state = State(file, ADMIN_EMAIL, secrets.token_urlsafe(12))
        state.save()
        return state

    def save(self) -> None:
        """Write the file."""
        values = asdict(self)
        del values["file"]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch(mode=0o600)
        self.file.write_text(json.dumps(values, indent=2))
