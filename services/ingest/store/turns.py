"""What is done for a tenant by one transaction at a time."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Unavailable

_NOT_HAD_IN_TIME = "55P03"


async def take_turn(session: AsyncSession, what: str, tenant_id: UUID) -> None:
    """Let nobody else do this for the tenant until the transaction ends.

    Raises Unavailable if somebody else is at it for more than 2 s: who waits holds a connection that
    other tenants need.
    """
    try:
        # In the order as written: the bound is for this lock alone.
        await session.execute(
            text(
                "SELECT set_config('lock_timeout', '2s', true),"
                " pg_advisory_xact_lock(hashtextextended(:turn, 0)),"
                " set_config('lock_timeout', '0', true)"
            ),
            {"turn": f"{what} {tenant_id}"},
        )
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NOT_HAD_IN_TIME:
            detail = "the registry is being changed by another request; try again"
            raise Unavailable(detail, retry_after_s=2) from error
        raise
