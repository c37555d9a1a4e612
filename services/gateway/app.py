"""The gateway, put together."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from fastapi import FastAPI
from prometheus_client import Gauge
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from libs.common.auth.guesses import Guesses
from libs.common.auth.principal import PrincipalVerifier
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.parts import parts_of
from libs.common.refusals import Refusals
from libs.common.version import VERSION
from services.gateway import jobs
from services.gateway.adapters.factors import Factors
from services.gateway.adapters.identity_providers import IdentityProviders
from services.gateway.adapters.limits import Limiter
from services.gateway.adapters.tenancy import Tenancy
from services.gateway.adapters.upstreams import Upstreams
from services.gateway.api import accounts as accounts_api
from services.gateway.api import auth, cors, docs, factors, live, rate_limits, sign_on, tenants
from services.gateway.api import sessions as sessions_api
from services.gateway.api.answers import Answers
from services.gateway.api.console import console, no_console
from services.gateway.api.front_door import FrontDoor
from services.gateway.api.secure_headers import SecureHeaders
from services.gateway.domain.limit import Limit
from services.gateway.handlers import (
    listen_for_quotas,
    listen_for_revocation,
    listen_for_settings,
    stream_out,
    subscriptions,
)
from services.gateway.settings import Settings
from services.gateway.store.keys import Keys
from services.gateway.store.lookups import Lookups
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.api_calls import ApiCalls
from services.gateway.usecases.api_keys import ApiKeys
from services.gateway.usecases.attempts import AttemptLimits, Attempts
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.description import Description
from services.gateway.usecases.keyring import Keyring
from services.gateway.usecases.live import Live, Most
from services.gateway.usecases.origins import Origins
from services.gateway.usecases.rate_limits import RateLimits
from services.gateway.usecases.second_step import Passkeys, SecondSteps
from services.gateway.usecases.sessions import Lifetimes, Sessions

LOOKED_AT_EACH = timedelta(seconds=1)


def build(
    settings: Settings,
    bus: Bus,
    clock: Clock,
    *,
    upstreams: Mapping[str, ASGIApp] | None = None,
) -> FastAPI:
    """Return the gateway's app.

    `upstreams` are services of this process, by name; the mapping may be filled after this
    returns, because the services need `app.state.keyring`, which is the source of the keys they
    verify with.
    """
    parts = parts_of(
        "gateway",
        settings,
        bus,
        partial(Transactions, store=GatewayStore),
        engine_pool=settings.database_pool,
    )
    transactions = parts.transactions
    lookups = Lookups(parts.engine)
    keyring = Keyring(
        Keys(parts.database, settings.key_passphrase.get_secret_value()),
        clock,
        settings.key_lifetime,
    )
    services = Upstreams(
        upstreams if upstreams is not None else {},
        settings.upstreams,
        timeout_s=settings.upstream_timeout.total_seconds(),
        file=settings.upstreams_file,
    )
    tenancy = Tenancy(services, keyring.signer)
    accounts = Accounts(tenancy)
    callers = Callers(keyring, accounts, clock)
    parts.refusals = Refusals("gateway", transactions, clock)
    api_keys = ApiKeys(
        tenancy, Guesses(settings.wrong_tokens_per_minute), keyring, clock, parts.refusals
    )
    sessions = Sessions(
        transactions, lookups, tenancy, accounts, callers, keyring, clock, _lifetimes(settings)
    )
    factors_of_users = Factors(tenancy)
    passkeys = Passkeys(lookups, factors_of_users, clock)
    connections = Live(
        lookups,
        Most(
            settings.live_connections_of_session,
            settings.live_connections_of_user,
            settings.live_connections_of_tenant,
        ),
    )
    callers.on_revoked.append(connections.close_session)
    callers.on_changed.append(connections.close_changed)
    limiter = Limiter(settings.redis_url.get_secret_value())
    limits = RateLimits(settings.rate_limits())
    origins = Origins(settings.allowed_origins)
    set_at_run_time = jobs.RunTimeSettings(lookups, limits, origins)
    api_calls = ApiCalls(tenancy, transactions, clock)
    metrics = Metrics()
    connected = Gauge("gateway_live_connections", "Open WebSockets.", registry=metrics.registry)
    connected.set_function(connections.count)

    subscriptions.attach(bus, transactions)
    listen_for_revocation(bus, callers, api_keys, connections, clock, settings.access_lifetime)
    listen_for_settings(bus, set_at_run_time.look)
    listen_for_quotas(bus, callers, api_keys, api_calls)
    stream_out(bus, connections)

    catch_up = partial(jobs.catch_up, lookups, callers, clock, settings.access_lifetime)
    keep_house = partial(
        jobs.keep_house, keyring, lookups, parts.engine, clock, settings.inbox_kept
    )
    parts.tickers += [
        Ticker("gateway.catch_up", settings.revocation_catch_up, catch_up),
        Ticker("gateway.api_key_uses", settings.housekeeping, api_keys.tell_uses),
        Ticker("gateway.upstreams", LOOKED_AT_EACH, services.look),
        Ticker("gateway.settings", settings.revocation_catch_up, set_at_run_time.look),
        Ticker("gateway.usage", settings.usage_told, api_calls.tell),
        Ticker("gateway.housekeeping", settings.housekeeping, keep_house),
    ]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            await keyring.keep()
            await services.open()
            await services.look()
            stack.push_async_callback(services.close)
            await limiter.open()
            stack.push_async_callback(limiter.close)
            # Before the first request: what was revoked while we were away.
            await catch_up()
            await set_at_run_time.look()
            # The last that is done when all requests are answered.
            stack.push_async_callback(api_calls.tell)
            parts.start_tickers(stack)
            stack.callback(connections.close_all)
            yield

    app = create_app(
        "gateway",
        version=VERSION,
        routers=[
            auth.router,
            accounts_api.router,
            factors.router,
            sessions_api.router,
            sign_on.router,
            tenants.router,
            docs.router,
            live.router,
            rate_limits.router,
            cors.router,
        ]
        + ([no_console] if settings.console_dir is None else []),
        lifespan=lifespan,
        metrics=metrics,
        # Not the bus: without it the gateway still lets everyone work, and revokes by its own look.
        checks={"database": parts.database.check},
        max_body_bytes=settings.max_body_bytes,
    )
    if settings.console_dir is not None:
        app.mount("/", console(settings.console_dir), name="console")
    app.user_middleware.append(Middleware(Answers))
    # Innermost: within the request's id, log line and metrics, before the gateway's own routes.
    app.user_middleware.append(
        Middleware(
            FrontDoor,
            upstreams=services,
            callers=callers,
            api_keys=api_keys,
            limiter=limiter,
            limits=limits,
            origins=origins,
            guesses=Guesses(settings.wrong_tokens_per_minute),
            trusted_proxies=settings.trusted_proxies,
            metrics_networks=settings.metrics_networks,
            on_admitted=[api_calls.admit],
        )
    )
    app.add_middleware(
        SecureHeaders,
        allowed_hosts=settings.allowed_hosts,
        trusted_proxies=settings.trusted_proxies,
    )
    app.state.bounds = settings.bounds()
    app.state.clock = clock
    app.state.transactions = transactions
    # The gateway's own routes that ask for a permission are asked by way of the front door.
    app.state.verifier = PrincipalVerifier(keyring)
    app.state.keyring = keyring
    app.state.accounts = accounts
    app.state.callers = callers
    app.state.api_keys = api_keys
    app.state.refusals = parts.refusals
    app.state.sessions = sessions
    app.state.factors = factors_of_users
    app.state.passkeys = passkeys
    app.state.attempts = attempts = Attempts(limiter, tenancy, _attempt_limits(settings))
    app.state.second_steps = SecondSteps(
        transactions, lookups, factors_of_users, passkeys, accounts, sessions, attempts, clock
    )
    app.state.public_url = settings.public_url
    app.state.identity_providers = IdentityProviders(tenancy)
    # Of the installation alone: a tenant's sites may call the API, and neither use the cookie nor
    # ask for passkeys that open other tenants as well.
    app.state.allowed_origins = frozenset(settings.allowed_origins)
    app.state.live = connections
    app.state.limiter = limiter
    app.state.rate_limits = limits
    app.state.origins = origins
    app.state.tenancy = tenancy
    app.state.description = Description(services, app.openapi)
    services.on_changed.append(app.state.description.forget)
    return app


def _attempt_limits(settings: Settings) -> AttemptLimits:
    return AttemptLimits(
        attempts=Limit("login", settings.logins_per_minute),
        failures_of_address=Limit(
            "login-failures-address", settings.login_failures_per_address, 600
        ),
        failures_of_account=Limit(
            "login-failures-account", settings.login_failures_per_account, 3600
        ),
        requests_of_address=Limit("account-requests", settings.account_requests_per_address, 600),
        mails_to_address=Limit("account-mails", settings.account_mails_per_hour, 3600),
    )


def _lifetimes(settings: Settings) -> Lifetimes:
    return Lifetimes(
        access=settings.access_lifetime,
        refresh=settings.refresh_lifetime,
        session=settings.session_lifetime,
        ticket=settings.ticket_lifetime,
    )
