"""The reasons for which something goes to the quarantine, and the table that tells what they mean."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
INGEST = ROOT / "services/ingest"
REASON = re.compile(r"[a-z]+(_[a-z]+)+")
COMMON = {"malformed", "invalid", "internal", "too-large", "unsupported-media-type"}
"""Kinds of errors that all services have, and with which what a device says may end."""


def told() -> set[str]:
    """Return the reasons that docs/ingest.md tells of."""
    table = (ROOT / "docs/ingest.md").read_text().partition("| reason | what is wrong |")[2]
    rows = re.findall(r"^\|([^|]*)\|", table.partition("\n\n")[0], re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def trees() -> Iterator[ast.Module]:
    for path in INGEST.rglob("*.py"):
        if "migrations" not in path.parts:
            yield ast.parse(path.read_text())


def words_in(node: ast.expr) -> set[str]:
    branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return {
        branch.value
        for branch in branches
        if isinstance(branch, ast.Constant)
        and isinstance(branch.value, str)
        and REASON.fullmatch(branch.value)
    }


def is_sentence(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and " " in node.value
    return isinstance(node, ast.JoinedStr)


def given() -> set[str]:
    """Return the reasons in the code: handed to what refuses, with a sentence, or an error's slug."""
    found: set[str] = set()
    for node in (node for tree in trees() for node in ast.walk(tree)):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if (
                "refus" in name.lower()
            ):
                reasons = [word.value for word in node.keywords if word.arg == "reason"]
                for argument in [*node.args, *reasons]:
                    found |= words_in(argument)
            case ast.Tuple(elts=[reason, detail]) if is_sentence(detail):
                found |= words_in(reason)
            case ast.Assign(targets=[ast.Name(id="slug")], value=reason):
                found |= words_in(reason)
    return found


def test_every_reason_in_the_code_stands_in_the_table() -> None:
    assert len(given()) > 15, "reasons are no longer given as this test looks for them"
    assert given() - told() == set()


def test_every_reason_in_the_table_stands_in_the_code() -> None:
    constants = {
        node.value
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert told() - COMMON - constants == set()
