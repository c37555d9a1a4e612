"""Devices that speak OPC UA, with asyncua's client, over channels that are signed and encrypted."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar, Self

from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.crypto.uacrypto import CertProperties

from services.ingest.protocols.opcua.certificates import Identity as Certificate
from services.ingest.protocols.opcua.certificates import new_identity
from tests.contract.devices.driver import (
    CommandSeen,
    Cut,
    Identity,
    NotLetIn,
    Promise,
    Reading,
    Refused,
    Site,
    to_json,
)

URI = "urn:test:device"


@cache
def _certificate() -> Certificate:
    return new_identity(datetime.now(UTC), URI)


class OpcUaDevice:
    """A client of the platform's OPC UA server."""

    name: ClassVar[str] = "opcua"
    column: ClassVar[str] = "OPC UA server"
    port_setting: ClassVar[str] = "opcua_port"
    exempt: ClassVar[Mapping[Promise, str]] = {}

    def __init__(self, client: Client, device: Identity) -> None:
        self._client = client
        self._device = device
        self._commands: asyncio.Queue[CommandSeen] = asyncio.Queue()

    @classmethod
    async def connect(cls, site: Site, device: Identity) -> Self:
        client = Client(f"opc.tcp://{site.host}:{site.port}", timeout=30)
        client.application_uri = URI
        await client.set_security(
            SecurityPolicyBasic256Sha256,
            CertProperties(_certificate().certificate, "der"),
            CertProperties(_certificate().key, "pem"),
        )
        client.set_user(str(device.device_id))
        client.set_password(device.token)
        self = cls(client, device)
        try:
            await client.connect()
        except ua.UaStatusCodeError as error:
            client.disconnect_socket()
            raise NotLetIn(str(error)) from error
        except (TimeoutError, ua.UaError, ConnectionError) as error:
            client.disconnect_socket()
            raise Cut(str(error)) from error
        subscription = await client.create_subscription(100, self)
        await subscription.subscribe_data_change(
            client.get_node(ua.NodeId(f"{device.device_id}#Commands", 2)), queuesize=100
        )
        return self

    def datachange_notification(self, node: object, value: Any, data: object) -> None:
        if value:
            said: dict[str, Any] = json.loads(value)
            self._commands.put_nowait(CommandSeen(said["id"], said["name"], said["params"]))

    async def send(self, *readings: Reading, within_s: float = 30.0) -> None:
        await self._call("Publish", to_json(readings).decode(), within_s=within_s)

    async def send_raw(self, payload: bytes) -> None:
        await self._call("Publish", payload.decode("latin-1"))

    async def next_command(self) -> CommandSeen:
        return await asyncio.wait_for(self._commands.get(), 15)

    async def reply(
        self,
        command: CommandSeen,
        status: str,
        *,
        result: object = None,
        error: str | None = None,
    ) -> None:
        said = error or "" if status == "failed" else json.dumps(result)
        await self._call("Reply", command.id, status, said)

    async def is_cut(self) -> bool:
        protocol = self._client.uaclient.protocol
        return protocol is None or bool(protocol.is_closed)

    async def close(self) -> None:
        if not await self.is_cut():
            await self._client.disconnect()
        self._client.disconnect_socket()

    async def _call(self, method: str, *arguments: str, within_s: float = 30.0) -> None:
        device = self._client.get_node(ua.NodeId(str(self._device.device_id), 2))
        node_id = ua.NodeId(f"{self._device.device_id}#{method}", 2)
        try:
            async with asyncio.timeout(within_s):
                await device.call_method(node_id, *arguments)
        except ua.UaStatusCodeError as error:
            if await self.is_cut():
                raise Cut(str(error)) from error
            raise Refused(str(error)) from error
        except (ConnectionError, ua.UaError) as error:
            raise Cut(str(error)) from error
