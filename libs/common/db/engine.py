"""An engine that lets no transaction begin before it is said for which tenants it works.

Row-level security reads `app.tenant_ids`, set here for the transaction alone, so that a pooled
connection never carries a tenant over to the next user. Nothing bound is an error, not "none":
a door that forgot to bind must fail loudly in its first test.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from libs.common.db.acting import acting, acting_now

_bound: ContextVar[frozenset[UUID] | None] = ContextVar("bound_tenants", default=None)


class NoTenantBound(RuntimeError):
    """A transaction began without saying for which tenants: a fault of the program."""


@contextmanager
def bound_to(tenants: Iterable[UUID]) -> Iterator[None]:
    """Let the transactions begun within see the rows of these tenants, and of no others.

    An inner binding replaces the outer one: a call into another service of the same process
    starts with its own.
    """
    token = _bound.set(frozenset(tenants))
    try:
        yield
    finally:
        _bound.reset(token)


@contextmanager
def unbound() -> Iterator[None]:
    """Forget the binding within, as at the border to another service of the same process."""
    token = _bound.set(None)
    try:
        with acting(None):
            yield
    finally:
        _bound.reset(token)


class Database:
    """The connections of one database role.

    `across_tenants` is for the roles that must cross tenants by name (`<service>_engine`, which
    bypass row-level security on the few columns granted to them): nothing is bound for them.
    `schema` is that of the service whose changes are recorded for the audit trail; None: none are.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 5,
        across_tenants: bool = False,
        application_name: str = "iiot",
        pooled: bool = True,
        schema: str | None = None,
    ) -> None:
        self.schema = schema
        connect_args = {
            "timeout": 5,
            "command_timeout": 60,
            "server_settings": {
                "application_name": application_name,
                "jit": "off",
                # A process that hangs in mid-transaction must not hold its locks for ever.
                "idle_in_transaction_session_timeout": "60s",
            },
        }
        sqlalchemy_url = url.replace("postgresql://", "postgresql+asyncpg://", 1)
        pool: dict[str, Any] = (
            {"pool_size": pool_size, "max_overflow": pool_size, "pool_timeout": 10}
            if pooled
            else {"poolclass": NullPool}
        )
        self.engine: AsyncEngine = create_async_engine(
            sqlalchemy_url,
            # What a statement was given may be a secret, and errors end in logs and dead letters.
            hide_parameters=True,
            connect_args=connect_args,
            **pool,
        )
        if not across_tenants:
            event.listen(self.engine.sync_engine, "begin", _bind)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """One transaction as an ORM session: committed at the end, rolled back on an error."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """One transaction as a plain connection: committed at the end, rolled back on an error."""
        async with self.engine.begin() as connection:
            yield connection

    async def check(self) -> None:
        """Return if the database answers (readiness)."""
        with bound_to(()):
            async with self.connection() as connection:
                await connection.exec_driver_sql("SELECT 1")

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def _bind(connection: Connection) -> None:
    tenants = _bound.get()
    if tenants is None:
        raise NoTenantBound(
            "no tenant bound: open the transaction through Transactions, or within bound_to(...)"
        )
    bound = "{" + ",".join(str(tenant) for tenant in tenants) + "}"
    caller = acting_now()
    if caller is None:
        connection.exec_driver_sql("SELECT set_config('app.tenant_ids', $1, true)", (bound,))
        return
    # No groups are '', which sec.groups() reads as "not limited"; none left are '{}'.
    groups = caller.groups
    connection.exec_driver_sql(
        "SELECT set_config('app.tenant_ids', $1, true), set_config('app.actor', $2, true),"
        " set_config('app.groups', $3, true)",
        (
            bound,
            msgspec.json.encode(caller.actor).decode() if caller.changes else "",
            "" if groups is None else "{" + ",".join(str(group) for group in groups) + "}",
        ),
    )
