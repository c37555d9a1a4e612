"""Commands to a device over its MQTT connection."""

import asyncio
import contextlib
import math
from collections.abc import Callable

from libs.common.clock import Clock
from libs.common.errors import Invalid, Unavailable
from services.ingest.domain.command import Delivered, Outgoing, to_json
from services.ingest.protocols.mqtt.outbound import Command
from services.ingest.protocols.mqtt.packets import ReasonCode
from services.ingest.protocols.mqtt.session import Session

ROOM_S = 2.0
QOS = 2
"""The device decides: it gets no more than it subscribed with."""


class WayDown:
    """Sends a device its commands for as long as it is subscribed to them."""

    def __init__(self, session: Session, clock: Clock, write: Callable[[bytes], None]) -> None:
        self._session = session
        self._clock = clock
        self._write = write
        self._room = asyncio.Event()
        self._awaited: dict[int, asyncio.Future[None]] = {}
        """The answers that somebody waits for, by packet id."""

    async def send(self, outgoing: Outgoing) -> Delivered:
        """Send a command, and return when the device has answered that it has it.

        With QoS 0 there is no answer. Raises Unavailable if the connection ends before that, Invalid
        if the device refuses it, TooLarge if it is more than the device reads.
        """
        return await self.transmit(outgoing, to_json(outgoing))

    async def transmit(
        self, outgoing: Outgoing, payload: bytes, topic: bytes | None = None
    ) -> Delivered:
        """Send a command as it is written already, by a topic that is not the device's own; as `send`."""
        left = (outgoing.expires_at - self._clock.now()).total_seconds()

        def publish() -> Command | None:
            return self._session.publish_command(
                outgoing.id,
                payload,
                qos=QOS,
                expires_in_s=min(2**32 - 1, max(1, math.ceil(left))),
                topic=topic,
            )

        command = publish()
        if command is None and self._session.listens_to(topic):
            command = await self._when_there_is_room(publish)
        if command is None:
            raise Unavailable(
                "the device does not listen, or has not answered earlier commands yet"
            )
        self._write(command.data)
        if not command.packet_id:
            return Delivered.SENT
        answer = self._awaited[command.packet_id] = asyncio.get_running_loop().create_future()
        try:
            await answer
        finally:
            if self._awaited.get(command.packet_id) is answer:
                del self._awaited[command.packet_id]
        return Delivered.ACKNOWLEDGED

    def answered(self, packet_id: int, code: int) -> None:
        """Take the device's answer."""
        self._room.set()
        answer = self._awaited.get(packet_id)
        if answer is None or answer.done():
            return
        if code >= ReasonCode.UNSPECIFIED_ERROR:
            answer.set_exception(Invalid(f"the device refuses it with reason code 0x{code:02x}"))
        else:
            answer.set_result(None)

    async def _when_there_is_room(self, publish: Callable[[], Command | None]) -> Command | None:
        """Wait a moment for the device to finish with earlier commands; others may wait too."""
        command: Command | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROOM_S):
                while command is None and not self._session.is_closed:
                    self._room.clear()
                    await self._room.wait()
                    command = publish()
        return command

    def has_room(self) -> None:
        """Note that the device has finished with a command."""
        self._room.set()

    def close(self) -> None:
        """Tell those who wait that no answer will come, and no room."""
        self._room.set()
        for answer in self._awaited.values():
            if not answer.done():
                answer.set_exception(Unavailable("the device's connection is over"))
