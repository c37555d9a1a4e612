"""Tenancy, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from uuid import uuid4

import structlog
from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.destinations import Destinations, hosts_of
from libs.common.email import normalise_email
from libs.common.http.app import create_app
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.outbound import OutboundClient, PlantGuard
from libs.common.parts import parts_of
from libs.common.sealing import Sealing
from libs.common.version import VERSION
from services.tenancy import jobs
from services.tenancy.adapters.common_passwords import common_passwords
from services.tenancy.adapters.ldap import Directories
from services.tenancy.adapters.oidc import OidcProviders
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.adapters.postman import Postman
from services.tenancy.api import (
    api_keys,
    audit,
    authz,
    billing,
    branding,
    credentials,
    factors,
    identity_providers,
    internal,
    login_policy,
    plans,
    registration,
    roles,
    sign_on,
    tenants,
    users,
)
from services.tenancy.domain.password import PasswordPolicy
from services.tenancy.handlers import subscriptions
from services.tenancy.settings import Settings
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.api_keys import ApiKeyHolders
from services.tenancy.store.identity_providers import OfferedProviders
from services.tenancy.store.mails import DueMails
from services.tenancy.store.requests import AccountRequests
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import accounts as usecases
from services.tenancy.usecases.factors import SecondFactors
from services.tenancy.usecases.sign_on import SignOn

MAIL_LEASE = timedelta(minutes=1)
"""Longer than an attempt may take."""

log = structlog.get_logger(__name__)


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return tenancy's app. Its lifespan opens the databases and lets the first admin in."""
    server = settings.mail_server()
    parts = parts_of(
        "tenancy",
        settings,
        bus,
        partial(Transactions, store=partial(TenancyStore, sends_mail=server is not None)),
        engine_pool=settings.database_pool,
    )
    engine, transactions = parts.engine, parts.transactions
    passwords = Passwords(settings.password_workers)
    own = (settings.database_url, settings.engine_database_url, settings.bus_url)
    destinations = Destinations(
        settings.identity_networks, hosts_of(url.get_secret_value() for url in own)
    )
    directories = Directories(destinations)
    sealing = Sealing(settings.sealing_key.get_secret_value(), "identity providers")
    policy = PasswordPolicy(settings.password_min_length, common_passwords)
    accounts = Accounts(engine)
    requests = AccountRequests(engine)
    due = DueMails(engine, MAIL_LEASE)
    metrics = Metrics()
    deliveries = None
    if server is not None:
        deliveries = Ticker(
            "tenancy.mail",
            settings.mail_tick,
            jobs.Deliveries(
                due, transactions, Postman(server), settings.public_url, clock, metrics.registry
            ).deliver_due,
        )
        parts.tickers.append(deliveries)

    def deliver_soon() -> None:
        if deliveries is not None:
            deliveries.wake()

    settling = Ticker(
        "tenancy.requests",
        settings.mail_tick,
        partial(jobs.settle_requests, requests, transactions, accounts, clock, deliver_soon),
    )
    parts.tickers += [
        settling,
        Ticker(
            "tenancy.housekeeping",
            settings.housekeeping,
            partial(
                jobs.keep_house,
                engine,
                accounts,
                due,
                clock,
                settings.inbox_kept,
                settings.idempotency_keys_kept,
            ),
        ),
        Ticker(
            "tenancy.removals",
            settings.housekeeping,
            partial(jobs.remove_again, engine, transactions, clock, settings.removed_again_after),
        ),
        Ticker(
            "tenancy.erasures",
            settings.housekeeping,
            partial(jobs.erase_closed, engine, transactions, clock),
        ),
        Ticker(
            "tenancy.plans",
            settings.plans_told,
            partial(jobs.tell_plans, engine, transactions, clock),
        ),
        Ticker(
            "tenancy.days",
            settings.housekeeping,
            partial(jobs.begin_days, engine, transactions, clock),
        ),
    ]

    subscriptions.attach(bus, transactions)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            stack.callback(passwords.close)
            stack.callback(directories.close)
            await _let_first_admin_in(settings, transactions, passwords, policy, clock)
            parts.start_tickers(stack)
            yield

    app = create_app(
        "tenancy",
        version=VERSION,
        routers=[
            plans.router,
            billing.router,
            branding.router,
            tenants.router,
            registration.router,
            # Before the users: `mails` is nobody's id.
            registration.mails,
            login_policy.router,
            users.router,
            roles.router,
            api_keys.router,
            authz.router,
            internal.router,
            identity_providers.router,
            sign_on.router,
            audit.router,
            credentials.router,
            factors.router,
        ],
        lifespan=lifespan,
        metrics=metrics,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    parts.furnish(app, settings, clock, keys, tenants_of=accounts.tenants_of)
    app.state.accounts = accounts
    app.state.account_requests = requests
    app.state.password_policy = policy
    app.state.settle_soon = settling.wake
    app.state.deliver_soon = deliver_soon
    app.state.api_key_holders = ApiKeyHolders(engine)
    app.state.api_keys_per_tenant = settings.api_keys_per_tenant
    app.state.factors = SecondFactors(
        transactions,
        accounts,
        Sealing(settings.sealing_key.get_secret_value(), "tenancy.factors"),
    )
    app.state.engine = engine
    app.state.passwords = passwords
    app.state.identity_provider_sealing = sealing
    app.state.offered_providers = OfferedProviders(engine)
    app.state.sign_on = SignOn(
        transactions,
        OidcProviders(OutboundClient(PlantGuard(destinations=destinations))),
        directories,
        sealing,
    )
    app.state.invitation_lifetime = settings.invitation_lifetime
    return app


async def _let_first_admin_in(
    settings: Settings,
    transactions: Transactions[TenancyStore],
    passwords: Passwords,
    policy: PasswordPolicy,
    clock: Clock,
) -> None:
    if not settings.first_admin_email:
        return
    email = normalise_email(settings.first_admin_email, "TENANCY_FIRST_ADMIN_EMAIL")
    password = settings.first_admin_password.get_secret_value()
    policy.check(password, own=[email], pointer="TENANCY_FIRST_ADMIN_PASSWORD")
    password_hash = await passwords.hash(password)
    async with transactions.begin(uuid4()) as store:
        founded = await usecases.found(
            store, uuid4(), email=email, password_hash=password_hash, at=clock.now()
        )
    if founded:
        log.info("the first administrator may log in", email=email)
