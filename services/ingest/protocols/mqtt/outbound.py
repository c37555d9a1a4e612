"""Commands published to a device, until it has answered them to the end."""

from uuid import UUID

from msgspec import Struct

from libs.common.errors import TooLarge
from services.ingest.protocols.mqtt.encoder import PUBREL, encode_acknowledgement, encode_publish
from services.ingest.protocols.mqtt.memory import Kept, Sent
from services.ingest.protocols.mqtt.packets import Properties
from services.ingest.protocols.mqtt.terms import Terms


class Command(Struct, frozen=True, gc=False):
    """A command on its way: `data` to be sent, `packet_id` 0 when no answer will come."""

    packet_id: int
    data: bytes


class Outbound:
    """The commands of one session that are not answered, no more at once than the device takes."""

    __slots__ = ("_sent_earlier", "last_packet_id", "sent")

    def __init__(self) -> None:
        self.last_packet_id = 0
        self.sent: dict[int, Sent] = {}
        """By packet id."""
        # Of these, those that left by an earlier connection: they leave again, by the same packet id.
        self._sent_earlier: dict[int, None] = {}

    def publish(
        self,
        command_id: UUID,
        topic: bytes,
        payload: bytes,
        *,
        qos: int,
        terms: Terms,
        properties: Properties | None,
    ) -> Command | None:
        """Return the command to send; None while as many are unanswered as may be.

        Its `data` are empty if it was sent already and is not answered. Raises TooLarge if the device
        does not read so large a packet.
        """
        packet_id = 0
        is_again = False
        for earlier_id, sent in self.sent.items():
            if sent.command_id == command_id:
                if earlier_id not in self._sent_earlier:
                    return Command(earlier_id, b"")  # its answer is still awaited
                packet_id, qos, is_again = earlier_id, sent.qos, True
                break
        if qos and not is_again:
            # What an earlier connection sent fills no window of this one until it is sent again.
            if len(self.sent) - len(self._sent_earlier) >= terms.commands_at_once:
                return None
            packet_id = self.last_packet_id % 65_535 + 1
            while packet_id in self.sent:
                packet_id = packet_id % 65_535 + 1
        data = encode_publish(
            topic,
            payload,
            packet_id=packet_id,
            qos=qos,
            dup=is_again,
            level=terms.level,
            properties=properties,
        )
        if not terms.fits(data):
            raise TooLarge(
                f"the command has {len(data)} bytes, the device reads {terms.largest_packet}"
            )
        if is_again:
            del self._sent_earlier[packet_id]
        elif packet_id:
            self.last_packet_id = packet_id
            self.sent[packet_id] = Sent(command_id, qos)
        return Command(packet_id, data)

    def end(self, packet_id: int, qos: int) -> bool:
        """Take the end of a command's journey; False for an unknown one, maybe of an earlier connection."""
        sent = self.sent.get(packet_id)
        if sent is None or sent.qos != qos:
            return False
        del self.sent[packet_id]
        self._sent_earlier.pop(packet_id, None)
        return True

    def receive(self, packet_id: int) -> bool | None:
        """Take a PUBREC: the device has the command. False if it said so before; None if it is unknown."""
        sent = self.sent.get(packet_id)
        if sent is None or sent.qos != 2:
            return None
        if sent.is_received:
            return False
        sent.is_received = True
        self._sent_earlier.pop(packet_id, None)
        return True

    def complete(self, packet_id: int) -> bool:
        """Take a PUBCOMP; whether that made room for another command."""
        sent = self.sent.get(packet_id)
        if sent is None or not sent.is_received:
            return False
        del self.sent[packet_id]
        return True

    def resume(self, kept: Kept, most: int) -> list[bytes]:
        """Go on where the device's last connection ended, with `most` commands; return what to send."""
        self.last_packet_id = kept.last_command_id
        # Of commands that are over nobody sends a second time, so that they are never answered.
        self.sent = dict(list(kept.sent.items())[-most:])
        releases = []
        for packet_id, sent in self.sent.items():
            if sent.is_received:
                releases.append(encode_acknowledgement(PUBREL, packet_id))
            else:
                self._sent_earlier[packet_id] = None
        return releases
