"""A cluster whose parts may be killed."""

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import UUID, uuid4

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.local.cluster import INGEST, INGEST_WRITER, Cluster
from tests.database import PrincipalHeaders

DEVICES = 20


@pytest.fixture(scope="session")
def jwks_url(gateway_key: ec.EllipticCurvePrivateKey) -> Iterator[str]:
    """Where the services fetch the key that signs the tests' principals."""
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(gateway_key.public_key()))
    document = json.dumps({"keys": [{**jwk, "kid": "test", "use": "sig", "alg": "ES256"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/jwks.json"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, jwks_url: str) -> Iterator[Cluster]:
    """A cluster of its own: tests kill what it is made of."""
    directory: Path = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(
        directory, members=(INGEST, INGEST_WRITER), env={"GATEWAY_JWKS_URL": jwks_url}
    )
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
async def devices(cluster: Cluster, principal_headers: PrincipalHeaders) -> dict[UUID, str]:
    """Registered devices of a tenant of the test's own: id and token."""
    headers = principal_headers(uuid4())
    async with httpx2.AsyncClient(base_url=cluster.url("ingest"), timeout=30) as http:
        answers = await asyncio.gather(
            *(
                http.post(
                    "/api/v1/devices",
                    json={"name": f"pump {number}", "type": "pump"},
                    headers=headers,
                )
                for number in range(DEVICES)
            )
        )
    assert {a.status_code for a in answers} == {201}, answers[0].text + cluster.log_tail("ingest")
    return {UUID(a.json()["id"]): a.json()["credentials"]["token"] for a in answers}
