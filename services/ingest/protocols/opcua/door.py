"""The OPC UA server as a door.

Its library is loaded when it opens: it is half of the memory of an ingest that does without.
"""

from contextlib import AsyncExitStack

from starlette.datastructures import State

from libs.common.http.bounds import within_open_files
from services.ingest.protocols.settings import OpcUaSettings
from services.ingest.usecases.reception import Reception


class OpcUaDoor:
    """Where devices come in by OPC UA."""

    def __init__(self, settings: OpcUaSettings, reception: Reception) -> None:
        self._settings = settings
        self._reception = reception
        self._stack = AsyncExitStack()

    async def open(self, state: State) -> None:
        """Listen, if there is to be an OPC UA server."""
        settings = self._settings
        if settings.opcua_port is None:
            return
        from services.ingest.protocols.opcua.server import Doors, OpcUaServer

        server = OpcUaServer(
            self._reception,
            Doors(
                settings.opcua_host,
                settings.opcua_port,
                settings.opcua_certificate,
                settings.opcua_key,
                settings.opcua_trusted,
                within_open_files(settings.opcua_sessions, 1 / 8),
                settings.metrics_per_device,
            ),
        )
        self._stack.push_async_callback(server.stop)
        state.opcua = server
        state.opcua_port = await server.listen()

    async def stop(self) -> None:
        """Close the port and the connections."""
        await self._stack.aclose()
