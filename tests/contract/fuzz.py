"""Random requests after the API's description, and what is wrong with the answers.

schemathesis makes them, one half as the description asks, the other half not; each answer must be
one that the description promises: its status, its media type, its headers, its schema; and never
5xx. Nothing is shrunk and nothing stops at the first fault, so that one run names them all.
Each shows its credential: what is wrong with a request is never that it shows none, or the
gateway would turn it away and no service would see it.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

Document = dict[str, Any]

_CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


_CREDENTIALS = {"authorization", "x-api-key"}


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked: where, as whom (by operation), and ids of things that there are, by operation."""

    url: str
    document: Document
    headers: Callable[[str, Document], dict[str, str]]
    ids: Callable[[str, Document], dict[str, str]]
    left_out: Mapping[str, str]
    late: Mapping[str, str] = field(default_factory=dict)
    """What is asked at the end, in this order, and why: it may shut the door on all that follows."""


def fuzz(target: Target, *, seed: int, examples: int) -> tuple[dict[str, Counter[int]], list[str]]:
    """Ask every operation so often in each way; return how often each answered what, and the faults."""
    schema = schemathesis.openapi.from_dict(_without_security(target.document))
    faults: dict[str, None] = {}
    answers: dict[str, Counter[int]] = {}
    with requests.Session() as session:
        for name, operation, described in _operations(schema, target):
            ids = target.ids(name, described)
            headers = target.headers(name, described)
            counted = answers[name] = Counter()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                # Half of the requests are about things that there are.
                for given in [{}, ids] if ids else [{}]:
                    for case in _cases(operation, mode, given, seed, examples):
                        faults |= dict.fromkeys(_ask(target, session, case, name, headers, counted))
    return answers, list(faults)


def _without_security(document: Document) -> Document:
    operations: dict[str, Document] = {
        path: {
            method: {k: v for k, v in said.items() if k != "security"}
            if isinstance(said, dict)
            else said
            for method, said in item.items()
        }
        for path, item in document["paths"].items()
    }
    return {k: v for k, v in document.items() if k != "security"} | {"paths": operations}


def _operations(schema: Any, target: Target) -> Iterator[tuple[str, Any, Document]]:
    """Yield the operations: those that read first, those that remove last, but for the late ones."""
    late = list(target.late)
    found = []
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        if name not in target.left_out:
            described = target.document["paths"][operation.path][operation.method.lower()]
            found.append((name, operation, described))

    def turn(entry: tuple[str, Any, Document]) -> tuple[int, bool, bool]:
        name = entry[0]
        at = late.index(name) + 1 if name in late else 0
        return at, not name.startswith("GET"), name.startswith("DELETE")

    yield from sorted(found, key=turn)


def _cases(
    operation: Any, mode: GenerationMode, ids: dict[str, str], seed: int, examples: int
) -> list[Any]:
    """Return so many cases, or none where nothing can be wrong with an operation."""
    cases: list[Any] = []
    strategy = operation.as_strategy(generation_mode=mode, path_parameters=ids or None)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def collect(case: Any) -> None:
        cases.append(case)

    try:
        collect()
    except (hypothesis.errors.Unsatisfiable, schemathesis.errors.SchemathesisError):
        return []
    return cases


def _ask(
    target: Target,
    session: requests.Session,
    case: Any,
    name: str,
    headers: dict[str, str],
    answers: Counter[int],
) -> Iterator[str]:
    # A credential of its own would be another user's, or nobody's.
    given = case.headers or {}
    case.headers = {k: v for k, v in given.items() if k.lower() not in _CREDENTIALS}
    case.cookies = {}
    try:
        answer = case.call(base_url=target.url, session=session, headers=headers, timeout=30)
    except requests.exceptions.InvalidHeader:
        return
    answers[answer.status_code] += 1
    try:
        case.validate_response(answer, checks=_CHECKS)
    except FailureGroup as group:
        for failure in group.exceptions:
            told = " ".join(f"{failure.title}: {failure.message}".split())
            yield f"{name} {answer.status_code}: {told[:300]}\n    {case.as_curl_command()[:500]}"


def a_seed(given: str | None) -> int:
    """Return the seed asked for, or another one each time."""
    return int(given) if given else random.SystemRandom().randrange(2**32)
