"""The signing keys, which belong to the installation and to no tenant."""

from datetime import datetime, timedelta

from sqlalchemy import text

from libs.common.db.engine import Database, bound_to
from services.gateway.domain.signing_key import (
    SigningKey,
    from_pem,
    needs_successor,
    new_key,
    superseded,
    to_pem,
)


class Keys:
    """The table of keys. `passphrase` encrypts what is written from now on; empty: it is not."""

    def __init__(self, database: Database, passphrase: str) -> None:
        self._database = database
        self._passphrase = passphrase

    async def keep(self, *, lifetime: timedelta, now: datetime) -> list[SigningKey]:
        """Return all keys, after making one where it is time and removing those that are done with.

        Of several replicas one does it, the others wait and see.
        """
        with bound_to(()):
            async with self._database.connection() as connection:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(hashtext('gateway.signing_keys'))")
                )
                rows = await connection.execute(text("SELECT * FROM gateway.signing_keys"))
                keys = [
                    from_pem(row.kid, row.private_pem, self._passphrase, row.created_at)
                    for row in rows
                ]
                if needs_successor(keys, lifetime=lifetime, now=now):
                    key = new_key(now)
                    await connection.execute(
                        text("INSERT INTO gateway.signing_keys VALUES (:kid, :pem, :at)"),
                        {"kid": key.kid, "pem": to_pem(key, self._passphrase), "at": now},
                    )
                    keys.append(key)
                for key in superseded(keys, now):
                    await connection.execute(
                        text("DELETE FROM gateway.signing_keys WHERE kid = :kid"), {"kid": key.kid}
                    )
                    keys.remove(key)
                return keys

    async def all(self) -> list[SigningKey]:
        """Return the keys as they are."""
        with bound_to(()):
            async with self._database.connection() as connection:
                rows = await connection.execute(text("SELECT * FROM gateway.signing_keys"))
                return [
                    from_pem(row.kid, row.private_pem, self._passphrase, row.created_at)
                    for row in rows
                ]
