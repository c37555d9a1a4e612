"""What tenants used in a month, for the invoice."""

from datetime import date
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from libs.common.errors import NotFound, invalid
from libs.common.http.problems import problems
from libs.common.http.schemas import Out
from services.tenancy.api.deps import (
    AllAccounts,
    AllTransactions,
    CanReadTenants,
    InTenantOfPath,
    IsPlatformAdmin,
)
from services.tenancy.domain.billing import Bill, as_csv, bill, name_of, span_of
from services.tenancy.usecases import billing as usecases

router = APIRouter(prefix="/api/v1", tags=["billing"])

Month = Annotated[
    str, Query(pattern=r"^[0-9]{4}-[0-9]{2}$", description="In UTC.", examples=["2026-11"])
]
Form = Annotated[Literal["json", "csv"], Query(alias="format")]

_AS_CSV: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "As asked for: JSON, or a sheet with a line for each tenant.",
        "content": {"text/csv": {"schema": {"type": "string"}, "example": as_csv([])}},
    }
}


class BillOut(Out):
    """A tenant's month."""

    month: Annotated[str, Field(examples=["2026-11"])]
    tenant_id: UUID
    slug: Annotated[str, Field(examples=["acme-steel"])]
    name: Annotated[str, Field(examples=["Acme Steel"])]
    plan: Annotated[str, Field(description="The one it has now.", examples=["standard"])]
    amounts: Annotated[
        dict[str, int],
        Field(
            description="Of what is used up the sum (`points`, `api_calls`), of what is there the"
            " most at a time (`devices_peak`, `users_peak`, `storage_bytes_peak`).",
            examples=[{"points": 1_000_000, "devices_peak": 12}],
        ),
    ]


class BillsOut(Out):
    """The months of all tenants, oldest tenant first."""

    items: list[BillOut]


@router.get(
    "/tenants/{tenant_id}/billing",
    response_model=BillOut,
    responses={**problems(NotFound), **_AS_CSV},
)
async def get_bill(
    tenant_id: UUID,
    who: CanReadTenants,
    store: InTenantOfPath,
    month: Month,
    form: Form = "json",
) -> BillOut | Response:
    """Return what a tenant used in a month; the platform's admins see any."""
    tenant = await store.tenants.get(tenant_id)
    of = _month(month)
    found = bill(tenant, of, await store.usage.days(*span_of(of)))
    return _out(found) if form == "json" else _sheet([found], f"{tenant.slug}-{month}")


@router.get("/billing", response_model=BillsOut, responses=_AS_CSV)
async def list_bills(
    who: IsPlatformAdmin,
    accounts: AllAccounts,
    transactions: AllTransactions,
    month: Month,
    form: Form = "json",
) -> BillsOut | Response:
    """Return what every tenant used in a month. Of one that was removed meanwhile nothing is known."""
    bills = await usecases.of_all(accounts, transactions, _month(month))
    if form == "csv":
        return _sheet(bills, f"billing-{month}")
    return BillsOut(items=[_out(one) for one in bills])


def _month(text: str) -> date:
    try:
        return date.fromisoformat(f"{text}-01")
    except ValueError:
        raise invalid("?month", "there is no such month") from None


def _out(found: Bill) -> BillOut:
    return BillOut(
        month=f"{found.month:%Y-%m}",
        tenant_id=found.tenant.id,
        slug=found.tenant.slug,
        name=found.tenant.name,
        plan=found.tenant.plan,
        amounts={name_of(resource): amount for resource, amount in found.amounts.items()},
    )


def _sheet(bills: list[Bill], name: str) -> Response:
    return Response(
        as_csv(bills),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}.csv"'},
    )
