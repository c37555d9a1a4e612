"""Tenancy, put together."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import structlog
from fastapi import FastAPI

from libs.common.auth.jwks import JwksKeys
from libs.common.auth.principal import KeySource, PrincipalVerifier
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.version import VERSION
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.api import internal, roles, tenants, users
from services.tenancy.domain.email import normalise_email
from services.tenancy.domain.password import check_new_password
from services.tenancy.settings import Settings
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import accounts as usecases

log = structlog.get_logger(__name__)


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return tenancy's app. Its lifespan opens the databases and lets the first admin in."""
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name="tenancy",
    )
    engine = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=settings.database_pool,
        across_tenants=True,
        application_name="tenancy-engine",
    )
    transactions = Transactions(database, bus.outbox("tenancy"), TenancyStore)
    passwords = Passwords(settings.password_workers)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            stack.push_async_callback(engine.close)
            stack.callback(passwords.close)
            await _let_first_admin_in(settings, transactions, passwords, clock)
            yield

    app = create_app(
        "tenancy",
        version=VERSION,
        routers=[tenants.router, users.router, roles.router, internal.router],
        lifespan=lifespan,
        checks={"database": database.check, "bus": bus.check},
    )
    app.state.clock = clock
    app.state.transactions = transactions
    app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))
    app.state.accounts = Accounts(engine)
    app.state.passwords = passwords
    return app


async def _let_first_admin_in(
    settings: Settings,
    transactions: Transactions[TenancyStore],
    passwords: Passwords,
    clock: Clock,
) -> None:
    if not settings.first_admin_email:
        return
    email = normalise_email(settings.first_admin_email, "TENANCY_FIRST_ADMIN_EMAIL")
    password = settings.first_admin_password.get_secret_value()
    check_new_password(password, "TENANCY_FIRST_ADMIN_PASSWORD")
    password_hash = await passwords.hash(password)
    async with transactions.begin(uuid4()) as store:
        founded = await usecases.found(
            store, uuid4(), email=email, password_hash=password_hash, at=clock.now()
        )
    if founded:
        log.info("the first administrator may log in", email=email)
