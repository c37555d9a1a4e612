"""What a route may ask for as a parameter: the time, and a transaction of the caller's tenant.

A service names its own in `api/deps.py`:

    InTransaction = Annotated[AlertingStore, Depends(transaction, scope="function")]

`scope="function"` is not decoration: with the default the commit would come after the answer, and
a commit that fails would leave the client holding a 201.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request

from libs.common.auth.permission import principal
from libs.common.auth.principal import Principal
from libs.common.db.transactions import Store
from libs.common.http.idempotency import claim_key


def present_time(request: Request) -> datetime:
    """Return the present time of the service's clock (UTC)."""
    moment: datetime = request.app.state.clock.now()
    return moment


Now = Annotated[datetime, Depends(present_time)]


async def transaction(
    request: Request, who: Annotated[Principal, Depends(principal)]
) -> AsyncIterator[Store]:
    """Open the request's transaction for the caller's tenant; it commits when the route returns.

    If the request has an Idempotency-Key, it is claimed first.
    """
    async with request.app.state.transactions.begin(who.tenant_id) as store:
        await claim_key(request, store)
        yield store
