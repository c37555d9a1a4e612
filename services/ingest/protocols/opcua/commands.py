"""Commands of devices that a server has: a Write to a node, a Call of a method."""

import asyncio
from typing import Any

import msgspec
from asyncua import ua
from asyncua.client.ua_session import UaSession

from libs.common.errors import Invalid, Unavailable
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.protocols.opcua.browse import property_path
from services.ingest.protocols.opcua.connection import REQUEST_S, said
from services.ingest.protocols.opcua.items import Device
from services.ingest.protocols.opcua.values import Unsupported, scalar_of, variant_for
from services.ingest.usecases.downlinks import Send
from services.ingest.usecases.inlet import nothing
from services.ingest.usecases.reception import Reception


class Commands:
    """Carries out what is configured, and nothing else."""

    def __init__(self, session: UaSession, reception: Reception) -> None:
        self._session = session
        self._reception = reception

    def sender(self, device: Device) -> Send:
        """Return what carries a device's commands out and takes in what became of them."""

        async def send(outgoing: Outgoing) -> Delivered:
            try:
                async with asyncio.timeout(REQUEST_S):
                    result = await self._carry_out(device, outgoing)
            except (ConnectionError, TimeoutError) as error:
                raise Unavailable(said(error)) from error
            except ua.UaStatusCodeError as error:
                raise Invalid(said(error)) from error
            reply = {"id": str(outgoing.id), "status": "succeeded", "result": result}
            now = self._reception.clock.now()
            device.inlet.take(Channel.REPLIES, msgspec.json.encode(reply), now, nothing)
            return Delivered.ACKNOWLEDGED

        return send

    async def _carry_out(self, device: Device, outgoing: Outgoing) -> object:
        if outgoing.name == "write":
            await self._write(device, outgoing.params)
            return None
        if outgoing.name == "call":
            return await self._call(device, outgoing.params)
        raise Invalid("the commands of an OPC UA device are `write` and `call`")

    async def _write(self, device: Device, params: dict[str, Any]) -> None:
        wanted = params.get("metric"), params.get("node_id")
        found = [
            item.node_id
            for item in device.items
            if wanted in ((item.settings.metric, None), (None, item.settings.node_id))
            and item.settings.is_writable
            and item.node_id is not None
        ]
        if not found or "value" not in params:
            raise Invalid("write takes {metric or node_id, value}, of an item that is writable")
        kind = await self._type_of(found[0])
        try:
            variant = variant_for(params["value"], kind)
        except (ValueError, OverflowError) as error:
            raise Invalid(str(error)) from error
        (status,) = await self._session.write_attributes([found[0]], [ua.DataValue(variant)])
        status.check()

    async def _type_of(self, node_id: ua.NodeId) -> ua.VariantType:
        (now,) = await self._session.read_attributes([node_id], ua.AttributeIds.Value)
        kind = now.Value.VariantType if now.Value is not None else ua.VariantType.Null
        if kind is not ua.VariantType.Null:
            return kind
        (declared,) = await self._session.read_attributes([node_id], ua.AttributeIds.DataType)
        if declared.Value is None:
            raise Invalid("the server does not say what the node holds")
        return _variant_type(declared.Value.Value)

    async def _call(self, device: Device, params: dict[str, Any]) -> object:
        named = params.get("object"), params.get("method")
        if named not in device.methods:
            raise Invalid("call takes {object, method, args}, of a method that is configured")
        args = params.get("args", [])
        if not isinstance(args, list):
            raise Invalid("args is an array")
        request = ua.CallMethodRequest()
        request.ObjectId = ua.NodeId.from_string(str(named[0]))
        request.MethodId = ua.NodeId.from_string(str(named[1]))
        request.InputArguments = await self._arguments(request.MethodId, args)
        (result,) = await self._session.call([request])
        result.StatusCode.check()
        returned = [scalar_of(variant) for variant in result.OutputArguments or []]
        return [None if isinstance(value, Unsupported) else value for value in returned]

    async def _arguments(self, method: ua.NodeId, args: list[Any]) -> list[ua.Variant]:
        """Return JSON values as the types that a method declares. Raises Invalid."""
        (found,) = await self._session.translate_browsepaths_to_nodeids(
            [property_path(method, "InputArguments")]
        )
        declared: list[Any] = []
        if found.StatusCode.is_good() and found.Targets:
            (data,) = await self._session.read_attributes(
                [found.Targets[0].TargetId], ua.AttributeIds.Value
            )
            declared = list(data.Value.Value or []) if data.Value is not None else []
        if len(declared) != len(args):
            raise Invalid(f"the method takes {len(declared)} arguments, not {len(args)}")
        try:
            return [
                variant_for(value, _variant_type(argument.DataType))
                for value, argument in zip(args, declared, strict=True)
            ]
        except (ValueError, OverflowError) as error:
            raise Invalid(str(error)) from error


def _variant_type(data_type: ua.NodeId) -> ua.VariantType:
    try:
        return ua.VariantType(data_type.Identifier)
    except ValueError:
        raise Invalid("the node holds a type that cannot be written") from None
