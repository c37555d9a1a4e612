"""What tenancy does by the clock."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, timedelta
from uuid import UUID

import prometheus_client
import structlog

from libs.common.clock import Clock
from libs.common.db.books import trim_books
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from services.tenancy.adapters.letters import Look
from services.tenancy.adapters.postman import Postman
from services.tenancy.domain.origin import FAMILIAR_FOR
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.identity_providers import OfferedProviders
from services.tenancy.store.mails import DueMails
from services.tenancy.store.removals import removed_before
from services.tenancy.store.requests import AccountRequest, AccountRequests, RequestKind
from services.tenancy.store.store import TenancyStore
from services.tenancy.store.tenants import to_be_erased, with_changed_plans
from services.tenancy.store.usage import at_daily_limits
from services.tenancy.usecases import mails, passwords, plans, registration, tenants, usage

log = structlog.get_logger(__name__)

AT_ONCE = 8
REQUEST_TRIED_FOR = timedelta(hours=1)
GIVEN_UP_KEPT = timedelta(days=30)


async def keep_house(
    engine: Database,
    accounts: Accounts,
    due: DueMails,
    clock: Clock,
    inbox_kept: timedelta,
    keys_kept: timedelta,
) -> None:
    """Forget which events were handled, and which requests with a key were answered, long ago.

    And browsers that went to an identity provider and never came back, old tokens, and mail that was
    given up long ago.
    """
    await trim_books(engine, "tenancy", inbox_kept, keys_kept)
    now = clock.now()
    await OfferedProviders(engine).forget_expired(now)
    await accounts.forget_expired(now, familiar_before=now - FAMILIAR_FOR)
    await due.forget_given_up(now - GIVEN_UP_KEPT)


async def erase_closed(
    engine: Database, transactions: Transactions[TenancyStore], clock: Clock
) -> None:
    """Erase the tenants that were closed and whose grace is over."""
    now = clock.now()
    for tenant_id in await to_be_erased(engine, now):
        async with transactions.begin(tenant_id) as store:
            await tenants.erase_closed(store, at=now)


async def tell_plans(
    engine: Database, transactions: Transactions[TenancyStore], clock: Clock
) -> None:
    """Tell the tenants whose plan changed what it allows now."""
    for tenant_id in await with_changed_plans(engine):
        async with transactions.begin(tenant_id) as store:
            await plans.tell(store, at=clock.now())


async def begin_days(
    engine: Database, transactions: Transactions[TenancyStore], clock: Clock
) -> None:
    """Say of quotas that are used up by the day that all is there again."""
    now = clock.now()
    for tenant_id in await at_daily_limits(engine, now.astimezone(UTC).date()):
        async with transactions.begin(tenant_id) as store:
            await usage.judge_all(store, at=now)


async def remove_again(
    engine: Database, transactions: Transactions[TenancyStore], clock: Clock, after: timedelta
) -> None:
    """Say once more of the tenants that were removed that long ago that they are no more."""
    now = clock.now()
    for tenant_id in await removed_before(engine, now - after):
        async with transactions.begin(tenant_id) as store:
            await tenants.remove_again(store, at=now)


async def settle_requests(
    requests: AccountRequests,
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    clock: Clock,
    settled: Callable[[], None],
) -> None:
    """Look at what strangers asked for. One that fails is looked at again, for an hour."""
    while claimed := await requests.claim(AT_ONCE):
        for request in claimed:
            now = clock.now()
            try:
                await _settle(transactions, accounts, request, clock)
            except Exception:  # logged, and looked at again: the others must not wait for it
                log.exception("could not settle a request", kind=request.kind)
                if now < request.requested_at + REQUEST_TRIED_FOR:
                    continue
            await requests.remove(request.id)
        settled()


async def _settle(
    transactions: Transactions[TenancyStore],
    accounts: Accounts,
    request: AccountRequest,
    clock: Clock,
) -> None:
    match request.kind:
        case RequestKind.REGISTER:
            await registration.settle(transactions, accounts, request, now=clock.now())
        case RequestKind.FORGOT:
            await passwords.settle_forgotten(transactions, accounts, request, now=clock.now())


class Deliveries:
    """Hands in the mails that are due, some at once."""

    def __init__(
        self,
        due: DueMails,
        transactions: Transactions[TenancyStore],
        postman: Postman,
        public_url: str,
        clock: Clock,
        registry: prometheus_client.CollectorRegistry,
    ) -> None:
        self._due = due
        self._transactions = transactions
        self._postman = postman
        self._public_url = public_url
        self._clock = clock
        self._attempts = prometheus_client.Counter(
            "tenancy_mail_attempts",
            "Attempts to hand a mail in, by what it was for and how they ended.",
            ("purpose", "outcome"),
            registry=registry,
        )

    async def deliver_due(self) -> None:
        """Hand in what is due. What a crash cuts off is due again a minute later."""
        while claimed := await self._due.claim(AT_ONCE):
            attempts: list[Awaitable[None]] = [self._deliver(*claim) for claim in claimed]
            for outcome in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    log.error("could not send a mail", exc_info=outcome)

    async def _deliver(self, tenant_id: UUID, mail_id: UUID) -> None:
        now = self._clock.now()
        async with self._transactions.begin(tenant_id) as store:
            mail = await store.mails.get(mail_id)
            if mail is None:
                return
            facts = await mails.prepare(store, mail, self._public_url, now)
            if facts is None:
                # The invitation was accepted, or the like: there is nothing to say any more.
                await store.mails.remove(mail_id)
                return
        answer = await self._postman.send(mail, facts, Look(), now=now)
        async with self._transactions.begin(tenant_id) as store:
            given_up = await mails.record(store, mail, answer, self._clock.now())
        self._attempts.labels(mail.purpose, "given_up" if given_up else answer.verdict).inc()
        if given_up:
            log.error("a mail was given up", purpose=mail.purpose, mail=str(mail.id))
