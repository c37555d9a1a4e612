"""What the devices of a tenant prove themselves with."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.ingest.domain.credential import Credential, CredentialKind
from services.ingest.store.many import insert_many
from services.ingest.store.tables import CredentialRow


class Credentials:
    """The credentials of one tenant's devices."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, credential: Credential, shown: bytes, sealed: bytes | None = None) -> None:
        """Keep a credential, found by the hash of what is shown. Raises Conflict if it is known."""
        try:
            async with self._session.begin_nested():
                self._session.add(CredentialRow(**self._columns(credential, shown, sealed)))
        except IntegrityError as error:
            if "credentials_tenant_id_kind_token_hash_key" in str(error.orig):
                raise Conflict("one of the tenant's devices has this certificate") from error
            raise

    async def add_many(self, credentials: Sequence[tuple[Credential, bytes]]) -> None:
        """Keep fresh tokens."""
        rows = [self._columns(credential, shown, None) for credential, shown in credentials]
        await insert_many(self._session, "ingest.credentials", rows)

    async def of_device(self, device_id: UUID, now: datetime) -> list[Credential]:
        """Return the device's credentials that are good, oldest first."""
        rows = await self._session.scalars(
            self._of(device_id)
            .where(or_(CredentialRow.expires_at.is_(None), CredentialRow.expires_at > now))
            .order_by(CredentialRow.created_at, CredentialRow.id)
        )
        return [_to_credential(row) for row in rows]

    async def end(self, ids: list[UUID], device_id: UUID, at: datetime) -> None:
        """Let credentials of a device end at a moment, if they do not end before."""
        await self._session.execute(
            update(CredentialRow)
            .where(
                CredentialRow.tenant_id == self._tenant_id,
                CredentialRow.device_id == device_id,
                CredentialRow.id.in_(ids),
            )
            .values(expires_at=func.least(CredentialRow.expires_at, at))
        )

    async def remove(self, device_id: UUID, credential_id: UUID) -> None:
        """Withdraw a credential. Raises NotFound."""
        row = await self._session.scalar(
            self._of(device_id).where(CredentialRow.id == credential_id).with_for_update()
        )
        if row is None:
            raise NotFound(f"no credential {credential_id}")
        await self._session.delete(row)

    async def remove_all(self, device_id: UUID) -> list[UUID]:
        """Withdraw all of a device's credentials; return which those were."""
        removed = await self._session.scalars(
            delete(CredentialRow)
            .where(CredentialRow.tenant_id == self._tenant_id, CredentialRow.device_id == device_id)
            .returning(CredentialRow.id)
        )
        return list(removed)

    async def remove_ended(self, device_id: UUID, now: datetime) -> None:
        """Forget the device's credentials that have ended."""
        await self._session.execute(
            delete(CredentialRow).where(
                CredentialRow.tenant_id == self._tenant_id,
                CredentialRow.device_id == device_id,
                CredentialRow.expires_at <= now,
            )
        )

    def _columns(
        self, credential: Credential, shown: bytes, sealed: bytes | None
    ) -> dict[str, Any]:
        return {
            "tenant_id": self._tenant_id,
            "device_id": credential.device_id,
            "id": credential.id,
            "kind": credential.kind,
            "token_hash": shown,
            "identity": credential.identity,
            "sealed": sealed,
            "created_at": credential.created_at,
            "expires_at": credential.expires_at,
        }

    def _of(self, device_id: UUID) -> Select[CredentialRow]:
        return select(CredentialRow).where(
            CredentialRow.tenant_id == self._tenant_id, CredentialRow.device_id == device_id
        )


def _to_credential(row: CredentialRow) -> Credential:
    kind = CredentialKind(row.kind)
    return Credential(
        id=row.id,
        device_id=row.device_id,
        kind=kind,
        identity=row.identity,
        fingerprint=row.token_hash.hex() if kind is CredentialKind.CERTIFICATE else None,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
