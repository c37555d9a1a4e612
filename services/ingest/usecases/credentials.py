"""What is done with devices' credentials: given, rotated with overlap, withdrawn, opened."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from libs.common.errors import Conflict, invalid
from libs.common.events.ingest import DeviceCredentialRotated
from libs.common.sealing import Sealing
from services.ingest.domain.credential import (
    MOST_CREDENTIALS,
    Credential,
    CredentialKind,
    fingerprint_of,
    hash_identity,
    new_secret,
)
from services.ingest.domain.device import Source
from services.ingest.domain.token import hash_token, new_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.sources import Sources


@dataclass(frozen=True, slots=True)
class Issued:
    """A credential just given, with what is shown this once."""

    credential: Credential
    token: str | None = None
    secret: bytes | None = None


class Secrets:
    """The secrets that devices share with the platform, sealed where they are kept."""

    def __init__(self, sources: Sources, sealing: Sealing) -> None:
        self._sources = sources
        self._sealing = sealing

    async def of(self, kind: CredentialKind, identity: str) -> tuple[Source, bytes]:
        """Return the device that an identity stands for, and its secret.

        Raises Unauthenticated if it stands for none, Unavailable if that cannot be found out now.
        """
        source, credential_id, sealed = await self._sources.secret_of(kind, hash_identity(identity))
        return source, self._sealing.open(sealed, _about(source.tenant_id, credential_id))

    def seal(self, tenant_id: UUID, credential_id: UUID, secret: bytes) -> bytes:
        """Return a secret as it is kept. Raises Unavailable if the installation has no key."""
        return self._sealing.seal(secret, _about(tenant_id, credential_id))


async def issue(
    store: IngestStore,
    secrets: Secrets,
    device_id: UUID,
    kind: CredentialKind,
    *,
    certificate: str | None,
    overlap: timedelta,
    at: datetime,
) -> Issued:
    """Give a device a credential; those of the same kind that it has end after `overlap`.

    Raises NotFound, Conflict if it has too many, Invalid if the certificate is none.
    """
    await store.devices.get(device_id, lock=True)
    await store.credentials.remove_ended(device_id, at)
    there = await store.credentials.of_device(device_id, at)
    replaced = [credential.id for credential in there if credential.kind is kind]
    stay = len(there) - (0 if overlap else len(replaced))
    if stay >= MOST_CREDENTIALS:
        raise Conflict(f"a device has {MOST_CREDENTIALS} credentials at most; withdraw some")
    if overlap:
        await store.credentials.end(replaced, device_id, at + overlap)
    else:
        for credential_id in replaced:
            await store.credentials.remove(device_id, credential_id)
    issued = await _add(store, secrets, device_id, kind, certificate, at)
    if replaced:
        store.emit(
            DeviceCredentialRotated(
                tenant_id=store.tenant_id,
                at=at,
                device_id=device_id,
                credential_ids=replaced,
                ends_at=at + overlap if overlap else None,
            )
        )
    return issued


async def withdraw(
    store: IngestStore, device_id: UUID, credential_id: UUID, *, at: datetime
) -> None:
    """Make a credential void at once; what is connected by it is cut. Raises NotFound."""
    await store.devices.get(device_id, lock=True)
    await store.credentials.remove(device_id, credential_id)
    store.emit(
        DeviceCredentialRotated(
            tenant_id=store.tenant_id, at=at, device_id=device_id, credential_ids=[credential_id]
        )
    )


async def _add(
    store: IngestStore,
    secrets: Secrets,
    device_id: UUID,
    kind: CredentialKind,
    certificate: str | None,
    at: datetime,
) -> Issued:
    credential_id = uuid4()
    if (certificate is None) == (kind is CredentialKind.CERTIFICATE):
        raise invalid("#/certificate", "is given with the kind `certificate`, and with no other")
    if kind is CredentialKind.TOKEN:
        token = new_token()
        credential = Credential(credential_id, device_id, kind, None, None, at, None)
        await store.credentials.add(credential, hash_token(token))
        return Issued(credential, token=token)
    if certificate is not None:
        shown, ends_at = _read_certificate(certificate)
        if ends_at <= at:
            raise invalid("#/certificate", "has expired")
        credential = Credential(credential_id, device_id, kind, None, shown.hex(), at, ends_at)
        await store.credentials.add(credential, shown)
        return Issued(credential)
    identity, secret = new_secret(kind)
    sealed = secrets.seal(store.tenant_id, credential_id, secret)
    credential = Credential(credential_id, device_id, kind, identity, None, at, None)
    await store.credentials.add(credential, hash_identity(identity), sealed)
    return Issued(credential, secret=secret)


def _read_certificate(pem: str) -> tuple[bytes, datetime]:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise invalid("#/certificate", "is not an X.509 certificate in PEM") from error
    der = certificate.public_bytes(Encoding.DER)
    return fingerprint_of(der), certificate.not_valid_after_utc.astimezone(UTC)


def _about(tenant_id: UUID, credential_id: UUID) -> bytes:
    return tenant_id.bytes + credential_id.bytes
