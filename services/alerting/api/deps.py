"""What alerting's routes ask for."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import msgspec
from fastapi import Depends, Header, Request

from libs.common.auth.permission import Permission
from libs.common.auth.principal import Principal
from libs.common.http.doors import transaction
from libs.common.http.pages import Page, encode_cursor
from services.alerting.adapters.courier import Courier
from services.alerting.store.store import AlertingStore, AlertingTransactions

InTransaction = Annotated[AlertingStore, Depends(transaction, scope="function")]

CanReadAlerts = Annotated[Principal, Depends(Permission("alerts:read"))]
CanAcknowledge = Annotated[Principal, Depends(Permission("alerts:acknowledge"))]
CanResolve = Annotated[Principal, Depends(Permission("alerts:resolve"))]
CanReadChannels = Annotated[Principal, Depends(Permission("channels:read"))]
CanWriteChannels = Annotated[Principal, Depends(Permission("channels:write", of_whole_tenant=True))]

IfMatch = Annotated[
    str | None, Header(pattern=r'^"?\d{1,9}"?$', description="The version that you saw.")
]


async def _transactions(request: Request) -> AlertingTransactions:
    transactions: AlertingTransactions = request.app.state.transactions
    return transactions


async def _courier(request: Request) -> Courier:
    courier: Courier = request.app.state.courier
    return courier


OwnTransactions = Annotated[AlertingTransactions, Depends(_transactions)]
"""For the one route that must not hold a transaction while it waits for someone else's server."""

TheCourier = Annotated[Courier, Depends(_courier)]

T = TypeVar("T")
O = TypeVar("O")  # noqa: E741 - what comes out


def page_of(
    found: Sequence[T],
    limit: int,
    show: Callable[[T], O],
    place: Callable[[T], msgspec.Struct],
) -> Page[O]:
    """Return a page of what was found, given that one more than `limit` was asked for."""
    shown = found[:limit]
    return Page(
        items=[show(item) for item in shown],
        next_cursor=encode_cursor(place(shown[-1])) if len(found) > limit else None,
    )
