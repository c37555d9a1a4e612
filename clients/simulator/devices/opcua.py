"""A device that comes in by OPC UA: a session that is signed and encrypted, its token as the password."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from asyncua import Client, ua
from asyncua.client.ua_client import UASocketProtocol
from asyncua.crypto.cert_gen import (
    dump_private_key_as_pem,
    generate_private_key,
    generate_self_signed_app_certificate,
)
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.crypto.uacrypto import CertProperties
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from clients.simulator.devices.device import (
    ConnectionFailed,
    CredentialRefused,
    Device,
    Reading,
)

APPLICATION_URI = "urn:insa-iiot-platform:simulator"
NAMESPACE = 2
"""Of the devices, on the platform's server."""
COMMANDS_EVERY_MS = 500
MOST_COMMANDS = 100

_REFUSALS = {ua.StatusCodes.BadUserAccessDenied, ua.StatusCodes.BadIdentityTokenInvalid}
_NEVER = {ua.StatusCodes.BadInvalidArgument, ua.StatusCodes.BadRequestTooLarge}
"""What the platform will not take when it is sent again either."""


@dataclass
class OpcUaDevice(Device):
    """Calls its `Publish`; a reading is acknowledged by the call's answer."""

    host: str = "127.0.0.1"
    port: int = 4840
    window: int = 4

    async def _session(self) -> None:
        # It would write each lost connection to the log with its stack, which `run` says in a word.
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        self._client = client = Client(
            f"opc.tcp://{self.host}:{self.port}",
            timeout=self.timeout,
            # It asks the server this often whether it is there, and waits no longer for the answer:
            # with the library's second, a server that is busy loses all at once, and more come anew.
            watchdog_intervall=self.timeout,
        )
        client.application_uri = APPLICATION_URI
        client.set_user(self.id)
        client.set_password(self.token)
        opened = _opened_by(client)
        try:
            certificate, key = _identity()
            await client.set_security(
                SecurityPolicyBasic256Sha256,
                CertProperties(certificate, "der"),
                CertProperties(key, "pem"),
            )
            await client.connect()
            self._connected()
            await self._forward_beside(self._listen())
        except ua.UaStatusCodeError as error:
            if error.code in _REFUSALS:
                raise CredentialRefused(str(error)) from error
            raise ConnectionFailed(str(error)) from error
        except (ua.UaError, ConnectionError, OSError, TimeoutError) as error:
            raise ConnectionFailed(f"{type(error).__name__} {error}".strip()) from error
        finally:
            with suppress(Exception):
                async with asyncio.timeout(1):
                    await client.disconnect()
            for connection in opened:
                if connection.transport is not None:
                    connection.transport.abort()

    async def _listen(self) -> None:
        """Do what is asked; ends, by an exception, when the connection is lost."""
        heard: asyncio.Queue[str | Exception] = asyncio.Queue()

        async def lost(error: Exception) -> None:
            heard.put_nowait(error)

        self._client.connection_lost_callback = lost
        subscription = await self._client.create_subscription(COMMANDS_EVERY_MS, _Commands(heard))
        node = self._client.get_node(self._part("Commands"))
        await subscription.subscribe_data_change(node, queuesize=MOST_COMMANDS)
        while True:
            command = await heard.get()
            if isinstance(command, Exception):
                raise ConnectionFailed(f"lost: {command}") from command
            reply = self.obey(command.encode())
            if reply is None:
                continue
            said = msgspec.json.decode(reply)
            more = said.get("error") or msgspec.json.encode(said.get("result")).decode()
            await self._call("Reply", said["id"], said["status"], more)

    async def _deliver(self, reading: Reading) -> None:
        self.stats.sent += 1
        try:
            await self._call("Publish", reading.body().decode())
        except ua.UaStatusCodeError as error:
            if error.code not in _NEVER:
                raise
            self._reject(reading, str(error))
        else:
            self._acknowledge(reading)

    async def _call(self, method: str, *arguments: str) -> None:
        device = self._client.get_node(ua.NodeId(self.id, NAMESPACE))
        await device.call_method(self._part(method), *arguments)

    def _part(self, name: str) -> ua.NodeId:
        return ua.NodeId(f"{self.id}#{name}", NAMESPACE)


class _Commands:
    """Puts what the subscription brings into a queue."""

    def __init__(self, heard: asyncio.Queue[str | Exception]) -> None:
        self._heard = heard

    def datachange_notification(self, node: object, value: Any, data: object) -> None:
        if value:  # nothing is asked yet
            self._heard.put_nowait(value)


def _opened_by(client: Client) -> list[UASocketProtocol]:
    """Return a list of all connections that a client opens: it forgets some that it did not close."""
    opened: list[UASocketProtocol] = []
    make = client.uaclient._make_protocol

    def remembered() -> UASocketProtocol:
        opened.append(make())
        return opened[-1]

    setattr(client.uaclient, "_make_protocol", remembered)  # noqa: B010 - mypy lets no method be replaced
    return opened


@cache
def _identity() -> tuple[bytes, bytes]:
    """Return certificate (DER) and key (PEM), one pair for all devices: the token tells them apart."""
    key = generate_private_key()
    certificate = generate_self_signed_app_certificate(
        key,
        "INSA IIoT simulator",
        {},
        [x509.UniformResourceIdentifier(APPLICATION_URI), x509.DNSName("localhost")],
        [ExtendedKeyUsageOID.CLIENT_AUTH],
    )
    return certificate.public_bytes(Encoding.DER), dump_private_key_as_pem(key)
