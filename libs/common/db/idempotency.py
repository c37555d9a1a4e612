"""What was answered to a request, kept in the transaction of its effect: `<schema>.idempotency_keys`.

Keys, requests and answers are bytes here; what they mean is `libs.common.http.idempotency`'s.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database


async def claim(
    session: AsyncSession, schema: str, tenant_id: UUID, key: bytes, request: bytes
) -> tuple[bytes, bytes | None]:
    """Claim a tenant's key for a request until the transaction ends.

    Return the request that the key stands for and its answer, None if it is ours to find. If the
    key is claimed by a transaction under way, wait for its end; should it roll back, the key is ours.
    """
    # Updating what is there to itself, because "DO NOTHING" would return nothing.
    found = await session.execute(
        text(
            f"INSERT INTO {schema}.idempotency_keys AS k (tenant_id, key, request)"  # noqa: S608 - a schema's name, from the code
            " VALUES (:tenant_id, :key, :request)"
            " ON CONFLICT (tenant_id, key) DO UPDATE SET key = k.key"
            " RETURNING request, answer"
        ),
        {"tenant_id": tenant_id, "key": key, "request": request},
    )
    row = found.one()
    return row.request, row.answer


async def keep_answer(
    session: AsyncSession, schema: str, tenant_id: UUID, key: bytes, answer: bytes
) -> None:
    """Write the answer beside the key that this transaction has claimed."""
    await session.execute(
        text(
            f"UPDATE {schema}.idempotency_keys SET answer = :answer"  # noqa: S608 - a schema's name, from the code
            " WHERE tenant_id = :tenant_id AND key = :key"
        ),
        {"tenant_id": tenant_id, "key": key, "answer": answer},
    )


async def trim_idempotency_keys(engine: Database, schema: str, kept: timedelta) -> int:
    """Forget keys older than `kept`; return how many that were.

    `engine` is the service's role that crosses tenants.
    """
    async with engine.connection() as connection:
        result = await connection.execute(
            text(
                f"DELETE FROM {schema}.idempotency_keys"  # noqa: S608 - a schema's name, from the code
                " WHERE created_at < sec.iiot_now() - cast(:kept AS interval)"
            ),
            {"kept": kept},
        )
    return result.rowcount
