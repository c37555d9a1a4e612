"""The end of a tenant: what a service erases when it hears `tenant.deleted`."""

from sqlalchemy import text

from libs.common.db.transactions import Store

_TABLES = text(
    """
    SELECT format('%I.%I', nspname, relname) FROM pg_class c
    JOIN pg_namespace n ON n.oid = relnamespace
    JOIN pg_attribute a ON attrelid = c.oid AND attname = 'tenant_id' AND NOT attisdropped
    WHERE nspname = :schema AND relkind IN ('r', 'p') AND NOT relispartition
      AND has_table_privilege(c.oid, 'DELETE')
    ORDER BY 1
    """
)


async def erase_tenant(store: Store, schema: str) -> None:
    """Delete the tenant's rows from every table of the schema that the service may delete from.

    Which tables those are is asked of the database, so one that is added later is not forgotten. A
    table from which the service may not delete is left to the foreign key that makes its rows go
    with others, or keeps them on purpose: tests/contract/isolation/test_erasure.py knows which.
    """
    for table in (await store.session.scalars(_TABLES, {"schema": schema})).all():
        await store.session.execute(
            text(f"DELETE FROM {table} WHERE tenant_id = :tenant"),  # noqa: S608 - a name from the catalogue, quoted
            {"tenant": store.tenant_id},
        )
