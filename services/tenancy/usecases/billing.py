"""What all tenants used in a month."""

from datetime import date

from libs.common.db.transactions import Transactions
from services.tenancy.domain.billing import Bill, bill, span_of
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore

AT_ONCE = 100
"""Tenants that are read in one transaction."""


async def of_all(
    accounts: Accounts, transactions: Transactions[TenancyStore], month: date
) -> list[Bill]:
    """Return the month of every tenant there is, oldest tenant first."""
    bills: list[Bill] = []
    after = None
    while tenants := await accounts.tenants(AT_ONCE, after):
        ids = [tenant.id for tenant in tenants]
        async with transactions.begin(*ids) as store:
            days = await store.usage.days_of(ids, *span_of(month))
        bills += [bill(tenant, month, days.get(tenant.id, [])) for tenant in tenants]
        after = (tenants[-1].created_at, tenants[-1].id)
    return bills
