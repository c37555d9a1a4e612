"""What the gateway costs: requests a second through it, against the same service asked directly.

A service of one route, which verifies its principal and answers 200 bytes, stands behind the
gateway: a process each, on loopback, with limits counted in Redis. 1,000 users of 20 tenants, within
their limits, ask by `wrk`, on a few connections and on one each. The service does next to nothing, so
that the ratio is the worst there is. Then one user asks two replicas for more than the limit, and what
passed is counted.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

import httpx2
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.types import Receive, Scope, Send

from deploy.local.database import PlatformDatabase
from deploy.local.processes import free_port
from deploy.local.servers import postgres, redis
from libs.common import log
from libs.common.auth.jwks import JwksKeys
from libs.common.auth.permission import Permission
from libs.common.auth.principal import HEADER, Principal, PrincipalVerifier
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.http.app import create_app
from libs.common.http.bounds import Bounds
from libs.common.http.schemas import Out
from libs.common.http.server import ServerConfig
from libs.common.service import with_bus
from tests.bench.meter import spent
from tests.bench.report import print_report, say

USERS = 1_000
TENANTS = 20
CONNECTIONS = 32
EDGE = 600
"""A minute: what one user may ask of both replicas together; large enough to be counted ahead."""
EDGE_ASKED = 900
ADMIN = "admin@plant.example"
"""Who may set the limit."""
ROUNDS = 3


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds", type=int, default=8, metavar="S", help="of each of the runs (default 8)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line, last on stdout")
    parser.add_argument("--role", choices=["service", "gateway"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "service":
        _serve(service(os.environ["JWKS_URL"]), int(os.environ["PORT"]))
    elif arguments.role == "gateway":
        _serve(gateway(os.environ["SERVICE_URL"]), int(os.environ["PORT"]))
    else:
        if shutil.which("wrk") is None:
            raise SystemExit("wrk is missing: apt-get install wrk")
        with tempfile.TemporaryDirectory(prefix="iiot-bench-") as directory:
            Path(directory).chmod(0o755)
            figures = measure(Path(directory), arguments.seconds)
        print_report(figures, mode="cluster", as_json=arguments.json)


def measure(directory: Path, seconds: int) -> dict[str, float]:
    """Start everything, ask both ways in turn, and return the medians."""
    server = postgres(directory / "postgres")
    server.start()
    counter = redis(directory / "redis")
    counter.start()
    try:
        database = PlatformDatabase(server, directory / "passwords.json")
        asyncio.run(database.prepare())
        ports = free_port(), free_port(), free_port()
        direct, through, beside = (f"http://127.0.0.1:{port}" for port in ports)
        env = {
            "GATEWAY_DATABASE_URL": database.url("gateway_rw"),
            "GATEWAY_ENGINE_DATABASE_URL": database.url("gateway_engine"),
            "BUS_DATABASE_URL": database.url("bus_rw"),
            "SERVICE_URL": direct,
            "REDIS_URL": counter.url,
            "JWKS_URL": f"{through}/.well-known/jwks.json",
        }
        with (
            _child("service", {**env, "PORT": str(ports[0])}) as first,
            _child("gateway", {**env, "PORT": str(ports[1])}) as second,
        ):
            pids = {"service": first.pid, "gateway": second.pid}
            figures = asyncio.run(_compare(directory, direct, through, seconds, pids))
            with _child("gateway", {**env, "PORT": str(ports[2])}):
                return figures | asyncio.run(_at_the_edge(through, beside))
    finally:
        counter.stop()
        server.stop()


async def _compare(
    directory: Path, direct: str, through: str, seconds: int, pids: dict[str, int]
) -> dict[str, float]:
    async with httpx2.AsyncClient(base_url=through, trust_env=False, timeout=30) as http:
        await _until_up(http)
        say(f"{USERS} users log in")
        tokens = []
        for number in range(USERS):
            credentials = {"email": f"user-{number}@plant.example", "password": "x"}
            answer = await http.post("/api/v1/auth/login", json=credentials)
            tokens.append(f"Bearer {answer.raise_for_status().json()['access_token']}")
        _script(directory / "through.lua", "authorization", tokens)
        say("warming up")
        await asyncio.to_thread(_wrk, directory / "through.lua", through, 2)
        runs: dict[str, list[Run]] = {"direct": [], "through": []}
        for number in range(ROUNDS):
            # A principal lives a minute: a fresh one for each run.
            answer = await http.get("/api/v1/rules/me", headers={"authorization": tokens[0]})
            principal = answer.raise_for_status().json()["principal"]
            _script(directory / "direct.lua", HEADER, [principal])
            for name, base in (("direct", direct), ("through", through)):
                before = spent(pids)
                run = await asyncio.to_thread(_wrk, directory / f"{name}.lua", base, seconds)
                used = spent(pids) - before
                run.cpu_us = {n: s / run.requests * 1e6 for n, s in used.by_process.items()}
                say(
                    f"round {number + 1}, {name}: {run.per_s:.0f}/s, p99 {run.p99_ms:.1f} ms, {run.cpu_us}"
                )
                runs[name].append(run)
            quiet = [
                await asyncio.to_thread(_wrk, directory / f"{name}.lua", base, 3, connections=1)
                for name, base in (("direct", direct), ("through", through))
            ]
            each = await asyncio.to_thread(
                _wrk, directory / "through.lua", through, seconds, connections=USERS
            )
    return {
        "users_at_once_requests_per_s": each.per_s,
        "users_at_once_p99_ms": round(each.p99_ms, 1),
        "direct_requests_per_s": statistics.median(run.per_s for run in runs["direct"]),
        "through_requests_per_s": statistics.median(run.per_s for run in runs["through"]),
        "ratio_to_direct": round(
            statistics.median(
                through.per_s / direct.per_s
                for direct, through in zip(runs["direct"], runs["through"], strict=True)
            ),
            3,
        ),
        "service_cpu_us_per_request": _median(run.cpu_us["service"] for run in runs["direct"]),
        "gateway_cpu_us_per_request": _median(run.cpu_us["gateway"] for run in runs["through"]),
        "added_p99_ms": round(quiet[1].p99_ms - quiet[0].p99_ms, 2),
        "added_p50_ms": round(quiet[1].median_ms - quiet[0].median_ms, 2),
        "loaded_p99_ms": round(statistics.median(run.p99_ms for run in runs["through"]), 2),
        "connections": CONNECTIONS,
        "users": USERS,
        "seconds": seconds,
    }


async def _at_the_edge(*replicas: str) -> dict[str, float]:
    """Ask two replicas for more than one user may have, and count what passes."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx2.AsyncClient(base_url=base, trust_env=False, timeout=30)
            )
            for base in replicas
        ]
        for http in clients:
            await _until_up(http)
        credentials = {"email": ADMIN, "password": "x"}
        answer = await clients[0].post("/api/v1/auth/login", json=credentials)
        headers = {"authorization": f"Bearer {answer.raise_for_status().json()['access_token']}"}
        me = (await clients[0].get("/api/v1/auth/me", headers=headers)).json()["user_id"]
        limit = {"name": "edge", "match": {"principal_id": me}, "requests": EDGE}
        made = await clients[0].post("/api/v1/rate-limits", json=limit, headers=headers)
        made.raise_for_status()
        # Every replica knows it within five seconds, and what was asked before counts elsewhere.
        await asyncio.sleep(5)
        began = time.monotonic()
        statuses = []
        for number in range(EDGE_ASKED):
            await asyncio.sleep(max(0.0, began + number / 100 - time.monotonic()))
            http = clients[number % len(clients)]
            statuses.append((await http.get("/api/v1/rules/7", headers=headers)).status_code)
    return {
        "edge_limit": EDGE,
        "edge_allowed": statuses.count(200),
        "edge_refused": statuses.count(429),
        "edge_asked_per_s": round(EDGE_ASKED / (time.monotonic() - began), 1),
    }


async def _until_up(http: httpx2.AsyncClient) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx2.TransportError):
            if (await http.get("/health/ready")).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise SystemExit("the gateway does not come up")
        await asyncio.sleep(0.1)


@dataclass(slots=True)
class Run:
    """What wrk found."""

    per_s: float
    median_ms: float
    p99_ms: float
    requests: int
    cpu_us: dict[str, float] = field(default_factory=dict)
    """Processor time a request, by process."""


def _wrk(script: Path, base: str, seconds: int, connections: int = CONNECTIONS) -> Run:
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "--latency"]
    done = subprocess.run(
        [*words, "-s", str(script), f"{base}/api/v1/rules/7"],
        capture_output=True,
        text=True,
        check=True,
    )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"not every request was answered:\n{done.stdout}")
    per_s = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert per_s is not None, done.stdout
    requests = re.search(r"(\d+) requests in", done.stdout)
    assert requests is not None, done.stdout
    return Run(
        per_s=float(per_s[1]),
        median_ms=_percentile(done.stdout, "50"),
        p99_ms=_percentile(done.stdout, "99"),
        requests=int(requests[1]),
    )


def _median(figures: Iterable[float]) -> float:
    return round(statistics.median(figures), 1)


def _percentile(text: str, percent: str) -> float:
    found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)\b", text)
    assert found is not None, text
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def _script(file: Path, header: str, values: list[str]) -> None:
    """Let wrk take turns with the values of a header."""
    listed = ",\n".join(f'"{value}"' for value in values)
    file.write_text(
        f"local values = {{{listed}}}\nlocal n = 0\n"
        "request = function()\n  n = n + 1\n"
        f'  return wrk.format("GET", nil, {{["{header}"] = values[n % #values + 1]}})\nend\n'
    )


@contextlib.contextmanager
def _child(role: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.gateway", "--role", role],
        env={**os.environ, **env},
        stdout=sys.stderr,
    )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(timeout=20)


# --- the processes


def service(jwks_url: str) -> FastAPI:
    """Return a service like the others, that does next to nothing."""
    router = APIRouter(prefix="/api/v1/rules")

    class RuleOut(Out):
        id: int
        name: str
        description: str

    class MeOut(Out):
        principal: str

    @router.get("/me")
    async def get_me(
        who: Annotated[Principal, Depends(Permission("rules:read"))], request: Request
    ) -> MeOut:
        return MeOut(principal=request.headers[HEADER])

    @router.get("/{rule_id}")
    async def get_rule(
        rule_id: int, who: Annotated[Principal, Depends(Permission("rules:read"))]
    ) -> RuleOut:
        return RuleOut(id=rule_id, name="too hot", description="x" * 150)

    app = create_app("rules", version="0", routers=[router])
    app.state.verifier = PrincipalVerifier(JwksKeys(jwks_url))
    return app


def gateway(service_url: str) -> FastAPI:
    """Return the gateway before that service, and a tenancy that knows everyone."""
    from services.gateway.app import build
    from services.gateway.settings import Settings

    settings = Settings.model_validate(
        {"upstreams": {"rules": service_url}, "anonymous_per_minute": 10_000}
    )
    clock = SystemClock()
    bus = LocalBus(os.environ["BUS_DATABASE_URL"], clock)
    app = build(settings, bus, clock, upstreams={"tenancy": Everyone()})
    with_bus(app, bus)
    return app


class Everyone:
    """A tenancy in which everyone may read rules."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        import json

        status, said = 200, {}
        match scope["path"].removeprefix("/internal/v1/").split("/"):
            case ["credentials", "verify"]:
                email = json.loads((await receive())["body"])["email"]
                # Every replica has a tenancy of its own, and all say the same.
                said = _account(uuid5(NAMESPACE_URL, email))
            case ["users", user_id]:
                said = _account(UUID(user_id))
            case ["api-calls", "lease"]:
                said = {"amount": 10_000, "most": 1_000_000}
            case ["origins", "find"]:
                said = {"is_familiar": True}
            case _:
                status = 204
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def _account(user_id: UUID) -> dict[str, Any]:
    return {
        "user_id": str(user_id),
        "email": "ann@plant.example",
        "platform_admin": user_id == uuid5(NAMESPACE_URL, ADMIN),
        "memberships": [
            {
                "tenant_id": str(UUID(int=1 + user_id.int % TENANTS)),
                "tenant_slug": "plant",
                "tenant_name": "Plant",
                "name": "Ann",
                "roles": ["viewer"],
                "permissions": ["rules:read", "rate_limits:write"],
                "device_groups": None,
            }
        ],
    }


def _serve(app: FastAPI, port: int) -> None:
    log.configure("bench", level="warning")
    uvicorn.Server(ServerConfig(app, Bounds(), port=port, drain_s=1)).run()


if __name__ == "__main__":
    main()
