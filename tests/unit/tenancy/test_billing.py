"""What a month comes to."""

import csv
from datetime import UTC, date, datetime
from uuid import UUID

from libs.common.quotas.terms import Resource
from services.tenancy.domain.billing import as_csv, bill, span_of
from services.tenancy.domain.tenant import Tenant, TenantStatus
from services.tenancy.domain.usage import Day

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NOVEMBER = date(2026, 11, 1)


def test_what_is_used_up_is_added_and_of_what_is_there_the_most_counts() -> None:
    tenant = Tenant(UUID(int=1), "acme", "=cmd|' /C calc'!A0", TenantStatus.ACTIVE, NOW, NOW, 1)
    days = [
        Day(date(2026, 11, 1), {Resource.POINTS_PER_DAY: 100, Resource.DEVICES: 7}),
        Day(date(2026, 11, 2), {Resource.POINTS_PER_DAY: 50, Resource.DEVICES: 3}),
    ]
    one = bill(tenant, NOVEMBER, days)
    assert one.amounts[Resource.POINTS_PER_DAY] == 150
    assert one.amounts[Resource.DEVICES] == 7
    assert one.amounts[Resource.USERS] == 0
    [line] = csv.DictReader(as_csv([one]).splitlines())
    assert (line["month"], line["slug"], line["points"]) == ("2026-11", "acme", "150")
    assert (line["devices_peak"], line["api_calls"]) == ("7", "0")
    assert line["name"].startswith("'="), "no spreadsheet takes it for a formula"


def test_a_month_has_all_its_days() -> None:
    assert span_of(date(2028, 2, 1)) == (date(2028, 2, 1), date(2028, 2, 29))
