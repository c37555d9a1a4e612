"""Finding the device behind a token, before its tenant is known."""

import json

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
