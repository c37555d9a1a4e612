"""The documents say what is there: links lead somewhere, what is named exists, code can be read."""

import ast
import importlib.util
import re
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from urllib.parse import unquote

import pytest

from libs.common.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[3]
SKIPPED = {".venv", ".run", ".git", "node_modules", "dist"}
TOP = ("services", "libs", "deploy", "clients", "tests", "docs", "requirements")

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", re.DOTALL)
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
MADE_BY_A_WALKTHROUGH = {
    "services/ingest/protocols/lines.py",
    "tests/service/ingest/test_lines.py",
    "services/alerting/adapters/chat.py",
    "tests/service/alerting/test_chat.py",
}
"""What a reader of CONTRIBUTING.md is shown how to write."""


def _documents() -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not SKIPPED & set(path.relative_to(ROOT).parts) and "_cache" not in str(path)
    )


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("document", _documents(), ids=_name)


@cache
def _text(document: Path) -> str:
    return document.read_text()


@cache
def _prose(document: Path) -> str:
    return FENCE.sub("", _text(document))


@cache
def _anchors(document: Path) -> frozenset[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", _prose(document), re.MULTILINE)
    return frozenset(
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings
    )


@cache
def _names_in(module: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_the_documents_are_found() -> None:
    names = {_name(document) for document in _documents()}
    assert {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= names


@each_document
def test_a_link_leads_somewhere(document: Path) -> None:
    broken = []
    for target in (match["target"] for match in LINK.finditer(_prose(document))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / unquote(path)).resolve() if path else document
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


@each_document
def test_a_name_that_links_to_a_module_is_defined_there(document: Path) -> None:
    missing = []
    for match in LINK.finditer(_prose(document)):
        module = (document.parent / match["target"]).resolve()
        named = re.fullmatch(r"`(?:\w+\.)*(\w+)`", match["text"].strip())
        if named and module.suffix == ".py" and named[1] not in _names_in(module):
            missing.append(f"{named[1]} in {match['target']}")
    assert missing == []


@each_document
def test_a_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    fenced = "\n".join(match["code"] for match in FENCE.finditer(_text(document)))
    spans = "\n".join(INLINE.findall(_prose(document)))
    named = re.findall(r"^make ([a-z][a-z-]*)", f"{fenced}\n{spans}", re.MULTILINE)
    assert set(named) <= targets


@each_document
def test_a_path_that_is_named_exists(document: Path) -> None:
    missing = []
    for span in INLINE.findall(_prose(document)):
        path, _, test = span.partition("::")
        if not re.fullmatch(rf"(?:{'|'.join(TOP)})/[\w./-]+", path):
            continue
        if path in MADE_BY_A_WALKTHROUGH:
            continue
        file = ROOT / path
        if not file.exists() or (test and test not in _names_in(file)):
            missing.append(span)
    assert missing == []


@each_document
def test_python_in_a_document_can_be_read_and_imports_what_exists(document: Path) -> None:
    wrong = []
    blocks = [b for b in FENCE.finditer(_text(document)) if b["language"] == "python"]
    # What a document has its reader write, its other blocks may import.
    written = {
        name
        for block in blocks
        for name in re.findall(r"^class (\w+)", block["code"], re.MULTILINE)
    }
    for block in blocks:
        code = dedent(block["code"])
        try:
            tree = ast.parse(code)
        except SyntaxError:
            # A case of a match stands alone in a document.
            tree = ast.parse("match target:\n" + block["code"])
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if node.module.partition(".")[0] not in TOP:
                continue
            file = ROOT / (node.module.replace(".", "/") + ".py")
            if not file.exists():
                if importlib.util.find_spec(node.module) is None:
                    wrong.append(node.module)
                continue
            defined = written | _names_in(file)
            defined |= set(re.findall(r"^(\w+)(?::[^=\n]+)? =", file.read_text(), re.MULTILINE))
            wrong += [f"{node.module}.{a.name}" for a in node.names if a.name not in defined]
    assert wrong == []


@each_document
def test_a_command_in_a_document_can_be_read_by_the_shell(document: Path) -> None:
    for block in FENCE.finditer(_text(document)):
        if block["language"] == "bash":
            read = subprocess.run(
                ["bash", "-n"], input=block["code"], text=True, capture_output=True, check=False
            )
            assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize("service", ["ingest", "tenancy"])
def test_a_table_of_settings_has_all_of_the_service_s_own(service: str) -> None:
    settings = import_module(f"services.{service}.settings").Settings
    own = settings.model_fields.keys() - ServiceSettings.model_fields.keys()
    named = set(INLINE.findall(_prose(ROOT / "services" / service / "README.md")))
    # `INGEST_MQTT_TLS_PORT`, `_TLS_KEY`: the beginning stands once.
    endings = tuple(name for name in named if re.fullmatch(r"_[A-Z_]+", name))
    variables = {f"{service}_{name}".upper() for name in own}
    assert [v for v in sorted(variables - named) if not v.endswith(endings)] == []
