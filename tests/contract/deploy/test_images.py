"""What an image holds is enough to run its service, and nothing of another's."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from deploy.secrets import write_secrets
from libs.common.db.roles import SERVICES
from libs.common.migrate import SECTIONS
from tests.contract.deploy.composition import composed, secrets_of
from tests.contract.deploy.image import DOCKERFILE, ROOT, copies, lay_out, lineage, stages

IMAGES = (*SERVICES, "migrate")
LOCKS = ROOT / "requirements"

IMPORT = """
import json, sys
__import__("services.{service}.app"), __import__("services.{service}.__main__")
print(json.dumps(sorted(sys.modules)))
"""

# The environment of the tests has more packages than an image: what its lock does not name is hidden.
HIDE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}} in this image", name=name)
sys.meta_path.insert(0, Absent())
"""

# As a container does it: settings from the secrets' files alone, the service put together.
PUT_TOGETHER = """
from libs.common.bus.rabbit import RabbitBus
from libs.common.clock import SystemClock
from services.{service}.app import build
from services.{service}.settings import Settings
settings = Settings()
bus = RabbitBus(
    settings.bus_url.get_secret_value(), service="{service}", shards=settings.telemetry_shards
)
build(settings, bus, SystemClock())
print(settings.database_url.get_secret_value(), settings.bus_url.get_secret_value())
"""


def run(image: str, code: str, folder: Path, **env: str) -> str:
    """Run Python in an image's folder, with nothing else of the repository and its packages alone."""
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if not {_canonical(owner) for owner in owners} & names(image)
    }
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=hidden) + code],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def locked(image: str) -> set[tuple[str, str]]:
    """Return a lock's packages with their versions (more than one, where Python's decides)."""
    text = (LOCKS / f"{image}.lock").read_text()
    return set(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


def names(image: str) -> set[str]:
    """Return the names of a lock's packages."""
    return {name for name, _ in locked(image)}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_runs_on_its_own_image(service: str, tmp_path: Path) -> None:
    folder = lay_out("service", service, tmp_path)
    modules = set(json.loads(run(service, IMPORT.format(service=service), folder)))
    others = {f"services.{other}" for other in SERVICES if other != service}
    assert not (others | {"deploy"}) & modules


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_imports_only_when_needed_is_in_its_lock_too(service: str) -> None:
    known = packages_distributions()
    missing = {
        module
        for module in _imports(ROOT / "services" / service)
        for owners in [{_canonical(owner) for owner in known.get(module.partition(".")[0], [])}]
        if owners and not owners & names(service)
    }
    assert not missing


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_finds_all_it_must_know_in_its_secrets(service: str, tmp_path: Path) -> None:
    write_secrets(tmp_path / "generated")
    mounted = tmp_path / "run"
    mounted.mkdir()
    composition = composed(tmp_path / "compose")
    for target, source in secrets_of(composition, service).items():
        (mounted / target).write_text((tmp_path / "generated" / source).read_text())
    environment = composition["services"][service].get("environment") or {}
    said = run(
        service,
        PUT_TOGETHER.format(service=service),
        lay_out("service", service, tmp_path / "app"),
        IIOT_SECRETS_DIR=str(mounted),
        **environment,
    )
    database, bus = said.split()[-2:]
    assert database.startswith(f"postgresql://{service}_rw:")
    assert bus.startswith(f"amqp://{service}:")


def test_the_migration_has_every_schema_and_no_services_code(tmp_path: Path) -> None:
    folder = lay_out("migrate", "migrate", tmp_path)
    code = (
        "import json, deploy.cli.main, deploy.cli.migrate, libs.common.migrate as m;"
        "print(json.dumps([s for s in m.SECTIONS if (m._folder(s) / 'versions').is_dir()]))"
    )
    assert json.loads(run("migrate", code, folder)) == [s for s in SECTIONS if _has_migrations(s)]
    for service in SERVICES:
        assert [path.name for path in (folder / "services" / service).iterdir()] == ["migrations"]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_has_migrations(section: str) -> None:
    assert _has_migrations(section)


@pytest.mark.parametrize(("target", "service"), [("service", s) for s in SERVICES])
def test_an_image_holds_the_libraries_and_its_own_service(target: str, service: str) -> None:
    assert {source for source, _ in copies(target, service)} == {
        "alembic.ini",
        "libs",
        "services/__init__.py",
        f"services/{service}",
    }


@pytest.mark.parametrize("target", ["service", "migrate"])
def test_an_image_does_not_run_as_root(target: str) -> None:
    user = stages()[target].last("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    words = [word for word, _ in stages()[target].instructions]
    assert "COPY" not in words[words.index("USER") :], "the code is root's"


@pytest.mark.parametrize("target", ["service", "migrate"])
def test_nothing_is_installed_from_a_distribution(target: str) -> None:
    commands = [command for stage in lineage(target) for command in stage.all("RUN")]
    assert not [c for c in commands if re.search(r"\b(apt|apt-get|apk|pip|uv|curl|wget)\b", c)]
    assert not [c for stage in stages().values() for c in stage.all("ADD")]


def test_packages_are_installed_by_hash_and_never_built() -> None:
    (bootstrap, install) = stages()["venv"].all("RUN")
    assert "--require-hashes" in bootstrap
    assert "uv pip sync" in install
    assert "--require-hashes" in install
    assert "--only-binary :all:" in install


def test_a_stop_reaches_the_service_and_its_health_is_asked() -> None:
    service = stages()["service"]
    assert stages()["base"].last("STOPSIGNAL") == "SIGTERM"
    assert "/health/live" in service.last("HEALTHCHECK")
    assert "exec python -m" in service.last("CMD")
    assert service.last("HEALTHCHECK").split("CMD ", 1)[1].startswith('["python"')


def test_the_base_is_of_a_named_version() -> None:
    bases = {stage.base for stage in stages().values()} - set(stages())
    assert bases == {"${PYTHON}"}
    assert re.search(r"(?m)^ARG PYTHON=python:3\.\d+-slim-\w+", DOCKERFILE.read_text())


@pytest.mark.parametrize("image", IMAGES)
def test_the_build_may_see_all_that_it_copies(image: str) -> None:
    target = "migrate" if image == "migrate" else "service"
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in patterns
    allowed = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    sources = {source for source, _ in copies(target, image)}
    for source in sources:
        assert {source, *map(str, Path(source).parents)} & allowed, source
    assert "requirements/*.lock" in allowed


@pytest.mark.parametrize("lock", [*IMAGES, "build", "dev"])
def test_a_lock_names_hashes_and_no_index(lock: str) -> None:
    text = (LOCKS / f"{lock}.lock").read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|^-e ", text)
    stanzas = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    assert len(stanzas) == len(locked(lock)) >= 1
    assert all("--hash=sha256:" in stanza for stanza in stanzas)


@pytest.mark.parametrize("lock", [*IMAGES, "build"])
def test_what_is_shipped_is_what_was_tested(lock: str) -> None:
    assert locked(lock) <= locked("dev")


def _canonical(name: str) -> str:
    """Return a package's name as locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _has_migrations(section: str) -> bool:
    text = (ROOT / "alembic.ini").read_text()
    found = re.search(rf"(?m)^\[{section}\]\nscript_location = %\(here\)s/(.+)$", text)
    assert found, section
    return (ROOT / found[1] / "versions").is_dir()


def _imports(folder: Path) -> Iterator[str]:
    """Yield every module that a service's code names in an import, its migrations left out."""
    for file in folder.rglob("*.py"):
        if "migrations" in file.relative_to(folder).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
