"""What a tenant's usage of a month comes to, as whoever writes the invoice needs it."""

import csv
import io
from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from libs.common.quotas.terms import Resource
from services.tenancy.domain.tenant import Tenant
from services.tenancy.domain.usage import Day

BILLED: tuple[Resource, ...] = tuple(
    resource for resource in Resource if resource is not Resource.POINTS_PER_SECOND
)
"""All that usage is counted of."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Bill:
    """A tenant's month: of what is used up the sum of its days, of what is there the most at a time."""

    tenant: Tenant
    month: date
    amounts: dict[Resource, int]


def span_of(month: date) -> tuple[date, date]:
    """Return a month's first and last day."""
    return month.replace(day=1), month.replace(day=monthrange(month.year, month.month)[1])


def bill(tenant: Tenant, month: date, days: Sequence[Day]) -> Bill:
    """Return what the days of a month come to."""
    amounts = {}
    for resource in BILLED:
        each = [day.amounts.get(resource, 0) for day in days]
        amounts[resource] = sum(each) if resource.is_per_day else max(each, default=0)
    return Bill(tenant, month, amounts)


def as_csv(bills: Sequence[Bill]) -> str:
    """Return the bills as a sheet, a line each, that no spreadsheet takes for a formula."""
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(
        ["month", "tenant_id", "slug", "name", "plan", *(name_of(resource) for resource in BILLED)]
    )
    for one in bills:
        name = one.tenant.name
        writer.writerow(
            [
                f"{one.month:%Y-%m}",
                one.tenant.id,
                one.tenant.slug,
                f"'{name}" if name.startswith(_FORMULA) else name,
                one.tenant.plan,
                *(one.amounts[resource] for resource in BILLED),
            ]
        )
    return sheet.getvalue()


def name_of(resource: Resource) -> str:
    """Return what a month's amount is called: `points`, or `devices_peak`."""
    return resource.value.removesuffix("_per_day") if resource.is_per_day else f"{resource}_peak"
