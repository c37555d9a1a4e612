"""What the catcher has caught: the newest two hundred messages, in a small SQLite file."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

KEPT = 200

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


class Signature(StrEnum):
    """What became of the check of a webhook's signature."""

    VERIFIED = "verified"
    WRONG = "wrong"
    """None of the known secrets made it, or the body is not what was signed."""
    STALE = "stale"
    """Right, but more than five minutes from now: a replay, or a wrong clock."""
    MISSING = "missing"
    UNKNOWN = "unknown"
    """There is no secret to check it with."""


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail as it was handed in. `html` is untrusted."""

    sender: str
    recipients: Sequence[str]
    subject: str
    headers: Sequence[tuple[str, str]]
    text: str
    html: str | None
    severity: str | None
    resolved: bool


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook as it was posted. `body` is None where the bytes are not JSON."""

    path: str
    signature: Signature
    headers: Sequence[tuple[str, str]]
    raw: str
    body: Json
    type: str | None
    title: str | None
    severity: str | None
    resolved: bool


class Inbox:
    """Keeps messages over restarts. One caller at a time; every call is quick."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / "inbox.sqlite"
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT,"
            " kind TEXT NOT NULL, key TEXT NOT NULL, received_at TEXT NOT NULL,"
            " times INTEGER NOT NULL DEFAULT 1, content TEXT NOT NULL, UNIQUE (kind, key))"
        )

    def close(self) -> None:
        self._db.close()

    def add(self, message: Mail | Hook, key: str, at: datetime) -> None:
        """Keep a message; one with the same key (sent again) is counted, not kept twice."""
        kind = "mail" if isinstance(message, Mail) else "webhook"
        self._db.execute(
            "INSERT INTO messages (kind, key, received_at, content) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (kind, key) DO UPDATE SET times = times + 1, content = excluded.content,"
            " received_at = excluded.received_at",
            (kind, key, at.isoformat(), json.dumps(asdict(message))),
        )
        self._db.execute(
            "DELETE FROM messages WHERE id <= (SELECT max(id) FROM messages) - ?", (KEPT,)
        )

    def version(self) -> str:
        """Return a mark that changes whenever the messages do."""
        row = self._db.execute(
            "SELECT count(*), coalesce(max(id), 0), coalesce(sum(times), 0) FROM messages"
        ).fetchone()
        return "-".join(map(str, row))

    def messages(self) -> list[dict[str, Json]]:
        """Return all messages, the newest first; a mail's HTML is left to `html`."""
        rows = self._db.execute(
            "SELECT id, kind, key, received_at, times, content FROM messages"
            " ORDER BY received_at DESC, id DESC"
        )
        found: list[dict[str, Json]] = []
        for number, kind, key, received_at, times, content in rows:
            fields = json.loads(content)
            if kind == "mail":
                fields["has_html"] = fields.pop("html") is not None
            place = {"id": number, "kind": kind, "key": key}
            found.append(place | {"received_at": received_at, "times": times} | fields)
        return found

    def html(self, number: int) -> str | None:
        """Return a mail's HTML as it came, or None."""
        row = self._db.execute(
            "SELECT content FROM messages WHERE id = ? AND kind = 'mail'", (number,)
        ).fetchone()
        if row is None:
            return None
        html: str | None = json.loads(row[0])["html"]
        return html

    def clear(self) -> None:
        """Forget all messages."""
        self._db.execute("DELETE FROM messages")
