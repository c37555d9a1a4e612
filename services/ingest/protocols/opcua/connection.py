"""The way to a server: a socket to the address that was judged, a channel to whom we trust, a session."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from asyncua import Client, ua
from asyncua.client.ua_session import UaSession
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from libs.common.errors import Invalid
from services.ingest.protocols.opcua.bounds import BoundedProtocol
from services.ingest.protocols.opcua.certificates import (
    APPLICATION_URI,
    Identity,
    fingerprint,
    first_of,
    identity_at,
)
from services.ingest.protocols.opcua.site import OpcUaSettings
from services.ingest.usecases.connectors import Connector

REQUEST_S = 10.0
SERVER_CERTIFICATE = "the server's certificate"
OUR_CERTIFICATE = "our certificate"

_MODES = {
    "none": ua.MessageSecurityMode.None_,
    "sign": ua.MessageSecurityMode.Sign,
    "sign_and_encrypt": ua.MessageSecurityMode.SignAndEncrypt,
}


@dataclass(frozen=True, slots=True)
class Connection:
    """A session with a server."""

    session: UaSession
    certificates: Mapping[str, bytes]
    """Those that secure its channel (DER), by what they are called; none without security."""


@asynccontextmanager
async def connected(
    connector: Connector, certificate: Path | None, key: Path | None
) -> AsyncIterator[Connection]:
    """Connect to the connector's server. Raises AppError, or what the library raises."""
    # It would write what it cannot do to the log, and all that is said to it.
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    settings: OpcUaSettings = connector.settings
    parts = urlsplit(settings.endpoint)
    host, port = parts.hostname or "", parts.port or 4840
    address = await connector.destinations.address_of(host, port)
    client = _Client(settings.endpoint, address, port)
    if settings.username is not None:
        client.set_user(settings.username)
        client.set_password(connector.secret("password") or "")
    certificates: dict[str, bytes] = {}
    if settings.security != "none":
        identity = _identity(certificate, key)
        certificates = {
            SERVER_CERTIFICATE: await _secure(client, settings, identity),
            OUR_CERTIFICATE: identity.certificate,
        }
    try:
        async with asyncio.timeout(2 * REQUEST_S):
            await client.connect()
        yield Connection(client.uaclient.session, certificates)
    finally:
        # A server that is gone is not waited for.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1):
                await client.disconnect()
        client.disconnect_socket()


def said(error: BaseException) -> str:
    """Return what went wrong, in the protocol's word for it where there is one."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return str(ua.StatusCode(code).name)
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    return str(error) or type(error).__name__


class _Client(Client):
    """The library's client, which connects to the address that was judged, whatever its name is now."""

    def __init__(self, endpoint: str, address: str, port: int) -> None:
        super().__init__(endpoint, timeout=REQUEST_S)
        self._address = address, port
        self.application_uri = APPLICATION_URI
        self.name = self.description = "INSA IIoT ingest"
        self.max_messagesize = BoundedProtocol.most_bytes
        self.uaclient._make_protocol = self._make_protocol  # there is no other way in
        # How long a server keeps a session that we left without a word.
        self.session_timeout = 60_000

    async def connect_socket(self) -> None:
        await self.uaclient.connect_socket(*self._address)

    def _make_protocol(self) -> BoundedProtocol:
        client = self.uaclient
        made = client.protocol = BoundedProtocol(
            client._timeout, security_policy=client.security_policy
        )
        made.pre_request_hook = client._pre_request_hook
        made.on_connection_lost = client._on_transport_lost
        made.is_session_closing = client._is_session_closing
        return made


def _identity(certificate: Path | None, key: Path | None) -> Identity:
    """Return our certificate: as it is in the files now, else the same for all of this process."""
    if certificate is None or key is None:
        return _own_identity()
    return identity_at(certificate, key, datetime.now().astimezone())


@cache
def _own_identity() -> Identity:
    # The time of making it is not the plant's: it is when this process began to need one.
    return identity_at(None, None, datetime.now().astimezone())


async def _secure(client: Client, settings: OpcUaSettings, identity: Identity) -> bytes:
    """Have the channel secured, to the server that is trusted and no other; return its certificate."""
    if settings.server_certificate is not None:
        trusted = x509.load_pem_x509_certificate(settings.server_certificate.encode())
        der = trusted.public_bytes(Encoding.DER)
    else:
        async with asyncio.timeout(REQUEST_S):
            endpoints = await client.connect_and_get_server_endpoints()
        wanted = (settings.server_fingerprint or "").replace(":", "").lower()
        shown = {first_of(each.ServerCertificate) for each in endpoints if each.ServerCertificate}
        matching = [each for each in shown if fingerprint(each) == wanted]
        if not matching:
            seen = ", ".join(sorted(map(fingerprint, shown))) or "none"
            raise Invalid(f"the server's certificate is not the one that is trusted, but {seen}")
        der = matching[0]
    await client.set_security(
        getattr(security_policies, f"SecurityPolicy{settings.policy}"),
        CertProperties(identity.certificate, "der"),
        CertProperties(identity.key, "pem"),
        server_certificate=CertProperties(der, "der"),
        mode=_MODES[settings.security],
    )
    return der
