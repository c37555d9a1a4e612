"""Tenancy, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import structlog
from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.email import normalise_email
from libs.common.http.app import create_app
from libs.common.jobs import Ticker
from libs.common.parts import parts_of
from libs.common.version import VERSION
from services.tenancy import jobs
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.api import internal, roles, tenants, users
from services.tenancy.domain.password import check_new_password
from services.tenancy.settings import Settings
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import accounts as usecases

log = structlog.get_logger(__name__)


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return tenancy's app. Its lifespan opens the databases and lets the first admin in."""
    parts = parts_of(
        "tenancy",
        settings,
        bus,
        partial(Transactions, store=TenancyStore),
        engine_pool=settings.database_pool,
    )
    engine, transactions = parts.engine, parts.transactions
    passwords = Passwords(settings.password_workers)
    parts.tickers += [
        Ticker(
            "tenancy.housekeeping",
            settings.housekeeping,
            partial(jobs.keep_house, engine, settings.idempotency_keys_kept),
        ),
        Ticker(
            "tenancy.removals",
            settings.housekeeping,
            partial(jobs.remove_again, engine, transactions, clock, settings.removed_again_after),
        ),
    ]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            stack.callback(passwords.close)
            await _let_first_admin_in(settings, transactions, passwords, clock)
            parts.start_tickers(stack)
            yield

    app = create_app(
        "tenancy",
        version=VERSION,
        routers=[tenants.router, users.router, roles.router, internal.router],
        lifespan=lifespan,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    parts.furnish(app, settings, clock, keys)
    app.state.accounts = Accounts(engine)
    app.state.passwords = passwords
    app.state.invitation_lifetime = settings.invitation_lifetime
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
