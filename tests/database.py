"""A migrated database for each worker of a test run, and callers that the services believe.

Tests do not clean up after themselves: each makes tenants of its own, and no tenant sees another.
"""

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.common.auth.principal import (
    HEADER,
    KeySource,
    Kind,
    Principal,
    PrincipalSigner,
    StaticKeys,
)
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.roles import BUS, HISTORIAN_WRITER, LOGIN_ROLES, OBSERVER
from libs.common.migrate import migrate_all
from tests.key_set import published
from tests.servers import SharedServer

_FIRST_OID_OF_A_DATABASE = 16384
"""Below it are PostgreSQL's own types, which are the same in every database."""

_introspect_types = asyncpg.Connection._introspect_types  # type: ignore[attr-defined]  # private
_introspected: dict[frozenset[int], list[asyncpg.Record]] = {}


class _NothingAsked:
    """Stands for the statement that was not needed, so that nothing has to be prepared again."""

    name = "known"


async def _introspect_types_once(
    self: "asyncpg.Connection[asyncpg.Record]", oids: Iterable[int], timeout: float | None
) -> tuple[list[asyncpg.Record], object]:
    """Ask the catalogue about arrays and the like once a process, not once a connection.

    The question takes as long as all that a test asks a connection: it lives for one test.
    """
    asked = frozenset(oids)
    if asked in _introspected:
        return _introspected[asked], _NothingAsked
    rows, statement = await _introspect_types(self, asked, timeout)
    if max(asked) < _FIRST_OID_OF_A_DATABASE:
        _introspected[asked] = rows
    return rows, statement


asyncpg.Connection._introspect_types = _introspect_types_once  # type: ignore[attr-defined]  # private

PASSWORD = "only-for-tests"
PrincipalHeaders = Callable[..., dict[str, str]]


@dataclass(frozen=True, slots=True)
class DatabaseUrls:
    """The URLs of one database, by role."""

    admin: str

    def role(self, name: str) -> str:
        """Return the URL for a role."""
        parts = urlsplit(self.admin)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{name}:{PASSWORD}@{host}"))

    def rw(self, service: str) -> str:
        """Return the URL a service works with."""
        return self.role(f"{service}_rw")

    def engine(self, service: str) -> str:
        """Return the URL a service crosses tenants with."""
        return self.role(f"{service}_engine")

    @property
    def bus(self) -> str:
        """The local bus's."""
        return self.role(BUS)

    @property
    def writer(self) -> str:
        """The historian's writer's."""
        return self.role(HISTORIAN_WRITER)

    @property
    def observer(self) -> str:
        """The operators', who see everything and change nothing."""
        return self.role(OBSERVER)


async def create_database(server: SharedServer, name: str) -> DatabaseUrls:
    """Make a database and migrate it."""
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    urls = DatabaseUrls(server.url_of(name))
    await migrate_all(urls.admin, dict.fromkeys(LOGIN_ROLES, PASSWORD))
    return urls


def fresh_database(server: SharedServer) -> DatabaseUrls:
    """Make a database that no other test knows, migrated and empty."""
    directory = Path(os.environ["IIOT_TEST_RUN"].rpartition(":")[0])
    # Roles are the server's, not the database's: one migration at a time.
    with (directory / "migrate.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return asyncio.run(create_database(server, f"iiot_{secrets.token_hex(4)}"))


@pytest.fixture(scope="session")
def database_urls(postgres_server: SharedServer) -> DatabaseUrls:
    """The worker's own database, migrated, empty at the start of the run."""
    return fresh_database(postgres_server)


@pytest.fixture
async def bus(database_urls: DatabaseUrls) -> AsyncIterator[LocalBus]:
    """A local bus that nobody has read before. The test starts it; it is stopped afterwards."""
    connection = await asyncpg.connect(database_urls.admin)
    try:
        await connection.execute("DELETE FROM bus.subscribers")
        await connection.execute("DELETE FROM bus.dead_letters")
    finally:
        await connection.close()
    bus = LocalBus(database_urls.bus, SystemClock())
    yield bus
    await bus.stop()


@pytest.fixture(scope="session")
def gateway_key() -> ec.EllipticCurvePrivateKey:
    """The key that stands for the gateway's."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def keys(gateway_key: ec.EllipticCurvePrivateKey) -> KeySource:
    """The gateway's public keys, as services fetch them."""
    return StaticKeys({"test": gateway_key.public_key()})


@pytest.fixture(scope="session")
def jwks_url(gateway_key: ec.EllipticCurvePrivateKey) -> Iterator[str]:
    """Where the services fetch the key that signs the tests' principals."""
    with published(gateway_key, "test") as url:
        yield url


@pytest.fixture(scope="session")
def principal_headers(gateway_key: ec.EllipticCurvePrivateKey) -> PrincipalHeaders:
    """Headers that a request has when it came through the gateway."""
    signer = PrincipalSigner(gateway_key, "test")

    def headers(
        tenant_id: UUID,
        *permissions: str,
        subject: UUID | None = None,
        platform_admin: bool = False,
        kind: Kind = Kind.USER,
        groups: Iterable[UUID] | None = None,
    ) -> dict[str, str]:
        principal = Principal(
            subject=subject or uuid4(),
            tenant_id=tenant_id,
            kind=kind,
            permissions=frozenset(permissions or {"*"}),
            platform_admin=platform_admin,
            groups=None if groups is None else frozenset(groups),
        )
        return {HEADER: signer.sign(principal, SystemClock().now())}

    return headers
