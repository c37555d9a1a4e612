"""Finding the device behind a credential, before its tenant is known; and who may go on."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from libs.common.db.engine import Database
from services.ingest.domain.credential import CredentialKind, Proof
from services.ingest.domain.device import Series, Source, shard_of
from services.ingest.store.profiles import read_profile

_FIND = text("SELECT * FROM ingest.device_of_credential(:kind, :hash)")


class Tokens:
    """Looks credentials up across tenants, by their hash alone (role `ingest_engine`)."""

    def __init__(self, engine: Database, shards: int) -> None:
        self._engine = engine
        self._shards = shards

    async def source_of(
        self, kind: CredentialKind, shown: bytes, device_id: UUID | None = None
    ) -> Source | None:
        """Return the device whose credential it is, with the series it has.

        None if it is nobody's; or several's, as a certificate may be, and none of them is named.
        """
        found = await self._find(kind, shown, device_id)
        return None if found is None else self._source(kind, shown, found)

    async def secret_of(
        self, kind: CredentialKind, shown: bytes
    ) -> tuple[Source, UUID, bytes] | None:
        """Return also the credential's id and its sealed secret; None if it is nobody's."""
        found = await self._find(kind, shown, None)
        if found is None or found.sealed is None:
            return None
        return self._source(kind, shown, found), found.credential_id, found.sealed

    async def let_in(self, sources: Sequence[Source]) -> set[UUID]:
        """Return which of the devices may go on.

        They have every credential they came in by still, and their tenant is neither suspended nor
        gone.
        """
        asked: list[tuple[Source, bytes | None]] = []
        for source in sources:
            asked += [(source, shown) for _, shown in source.proofs] or [(source, None)]
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT ingest.devices_let_in(cast(:tenants AS uuid[]),"
                    " cast(:devices AS uuid[]), cast(:hashes AS bytea[]))"
                ),
                {
                    "tenants": [source.tenant_id for source, _ in asked],
                    "devices": [source.device_id for source, _ in asked],
                    "hashes": [shown for _, shown in asked],
                },
            )
            return set(rows.scalars())

    async def provisioning_key(self, shown: bytes) -> tuple[UUID, UUID] | None:
        """Return the tenant and the id of a provisioning key; None if it is nobody's."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM ingest.tenant_of_provisioning_key(:hash)"), {"hash": shown}
                )
            ).one_or_none()
        return None if found is None else (found.tenant_id, found.id)

    async def _find(self, kind: CredentialKind, shown: bytes, device_id: UUID | None) -> Any:
        async with self._engine.connection() as connection:
            rows = (await connection.execute(_FIND, {"kind": kind.value, "hash": shown})).all()
        named = [row for row in rows if device_id in (None, row.device_id)]
        return named[0] if len(named) == 1 else None

    def _source(self, kind: CredentialKind, shown: bytes, found: Any) -> Source:
        return Source(
            device_id=found.device_id,
            tenant_id=found.tenant_id,
            tenant=found.tenant,
            shard=shard_of(found.device_id, self._shards),
            series={
                metric: Series(*described) for metric, described in _parsed(found.series).items()
            },
            proofs={(kind, shown): Proof(found.credential_id, found.expires_at)},
            profile=None if found.profile is None else read_profile(_parsed(found.profile)),
        )


def _parsed(document: Any) -> Any:
    """Return a column of JSON, which the driver leaves as text."""
    return document if isinstance(document, dict) else json.loads(document)
