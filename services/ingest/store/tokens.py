"""Finding the device behind a token, before its tenant is known; and who may go on."""

import json
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from libs.common.db.engine import Database
from services.ingest.domain.device import Series, Source, shard_of


class Tokens:
    """Looks tokens up across tenants, by their hash alone (role `ingest_engine`)."""

    def __init__(self, engine: Database, shards: int) -> None:
        self._engine = engine
        self._shards = shards

    async def source_of(self, token_hash: bytes) -> Source | None:
        """Return the device whose token it is, with the series it has; None if it is nobody's."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM ingest.device_of_token(:hash)"), {"hash": token_hash}
                )
            ).one_or_none()
        if found is None:
            return None
        series = found.series if isinstance(found.series, dict) else json.loads(found.series)
        return Source(
            device_id=found.device_id,
            tenant_id=found.tenant_id,
            tenant=found.tenant,
            shard=shard_of(found.device_id, self._shards),
            series={metric: Series(number, kind) for metric, (number, kind) in series.items()},
        )

    async def let_in(self, sources: Sequence[Source]) -> set[UUID]:
        """Return which of the devices may go on.

        They have the token they came in by still, and their tenant is neither suspended nor gone.
        """
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT ingest.devices_let_in(cast(:tenants AS uuid[]),"
                    " cast(:devices AS uuid[]), cast(:hashes AS bytea[]))"
                ),
                {
                    "tenants": [source.tenant_id for source in sources],
                    "devices": [source.device_id for source in sources],
                    "hashes": [source.token_hash for source in sources],
                },
            )
            return set(rows.scalars())
