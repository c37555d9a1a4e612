"""Looks for secrets in what is committed: `make scan`.

By the shapes that issuers gave their tokens, and our own. Not by how random a text looks: in a
platform whose documents and tests are full of ids, digests and recorded packets that finds
nothing else.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).resolve().parents[1]

DETECTORS = (
    "ArtifactoryDetector",
    "AWSKeyDetector",
    "AzureStorageKeyDetector",
    "DiscordBotTokenDetector",
    "GitHubTokenDetector",
    "GitLabTokenDetector",
    "JwtTokenDetector",
    "MailchimpDetector",
    "NpmDetector",
    "OpenAIDetector",
    "PrivateKeyDetector",
    "PypiTokenDetector",
    "SendGridDetector",
    "SlackDetector",
    "SquareOAuthDetector",
    "StripeDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)

OUR_API_KEY = re.compile(r"iiotk_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43}")

ALLOWED: dict[tuple[str, str], str] = {
    ("services/gateway/api/entering.py", "JSON Web Token"): "what one looks like; it says nothing",
    ("docs/api/openapi-v1.json", "JSON Web Token"): "the same, in the API's description",
    ("tests/contract/test_bad_inputs.py", "JSON Web Token"): "signed by nobody, and refused",
    ("tests/unit/common/test_log.py", "JSON Web Token"): "a canary that no log may show",
    ("tests/unit/common/test_log.py", "Private Key"): "a canary that no log may show",
}
"""What was found and is none, by file and kind, and why."""


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """Something that looks like a secret. What it is is not shown."""

    path: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind}"


def secrets_in(root: Path, paths: Iterable[str]) -> Iterator[Found]:
    """Yield what looks like a secret in these files below the root, whether allowed or not."""
    with transient_settings({"plugins_used": [{"name": name} for name in DETECTORS]}):
        for path in paths:
            file = root / path
            for secret in scan_file(str(file)):
                yield Found(path, secret.line_number, secret.type)
            try:
                text = file.read_text()
            except (UnicodeDecodeError, FileNotFoundError):
                continue
            for number, line in enumerate(text.splitlines(), 1):
                if OUR_API_KEY.search(line):
                    yield Found(path, number, "API key of ours")


def committed() -> list[str]:
    """Return what is committed or about to be, but what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for path in listed.split("\0") if path and not path.endswith(".lock")]


def main() -> int:
    """Print what was found; 1 if anything was."""
    found = sorted(
        secret
        for secret in set(secrets_in(ROOT, committed()))
        if (secret.path, secret.kind) not in ALLOWED
    )
    for secret in found:
        print(f"a secret? {secret}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
