"""Messages of QoS 1 and 2 that a device publishes, until they are answered to the end."""

from collections.abc import Iterable
from datetime import datetime

from services.ingest.protocols.mqtt.encoder import (
    PUBACK,
    PUBREC,
    encode_acknowledgement,
    encode_pubacks,
)
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.memory import Kept, Receipt, Receipts
from services.ingest.protocols.mqtt.packets import (
    LEVEL_5,
    ProtocolViolation,
    Publish,
    ReasonCode,
)


class Inbound:
    """What one connection has sent and we have not answered, and the window that bounds it."""

    __slots__ = (
        "_exactly_once",
        "_safe",
        "_window",
        "is_full",
        "receipts",
        "received",
        "refused",
        "unacknowledged",
    )

    # All these are dicts, whose empty ones take a quarter of a set's room: most connections never
    # fill them.
    def __init__(self, limits: Limits) -> None:
        self._window = limits.receive_window
        self.receipts = Receipts(limits.remembered_receipts)
        """For the device's next session."""
        self.unacknowledged: dict[int, Receipt] = {}
        """Packet id to (first received, fingerprint), in the order received."""
        # PUBACKs must leave in that order [MQTT-4.6.0-2], so what is safe before its predecessors waits.
        self._safe: dict[int, None] = {}
        self._exactly_once: dict[int, None] = {}
        """Of the unacknowledged, those of QoS 2."""
        self.refused: dict[int, ReasonCode] = {}
        """Of the unacknowledged, those that are not taken, and why."""
        self.received: dict[int, None] = {}
        """Messages of QoS 2 that are safe and that the device has not released."""
        self.is_full = False
        """As much is unanswered as may be: no more is read until half of it is answered."""

    def answer_again(self, packet: Publish) -> bytes | None:
        """Return what a message that has come before is answered by now: nothing, if that is to come.

        None if it is a new one. Raises ProtocolViolation if its packet id is another's.
        """
        packet_id = packet.packet_id
        on_its_way = self.unacknowledged.get(packet_id)
        if on_its_way is not None:
            # A message sent again is answered by the PUBACK of the first; another one may not have
            # its packet id.
            if packet.dup and on_its_way[1] == hash(packet.payload):
                return b""
            raise ProtocolViolation(
                f"packet id {packet_id} is in use [MQTT-2.3.1-2]", ReasonCode.PROTOCOL_ERROR
            )
        if packet.qos == 2 and packet_id in self.received:
            if packet.dup:
                return encode_acknowledgement(PUBREC, packet_id)
            # A device that has forgotten its own session: this is another message, and none is lost.
            del self.received[packet_id]
        return None

    def open(self, packet: Publish, at: datetime) -> datetime:
        """Open a new message's account; return when it was received for the first time."""
        packet_id, fingerprint = packet.packet_id, hash(packet.payload)
        if packet.dup:
            at = self.receipts.first_received(packet_id, fingerprint) or at
        self.unacknowledged[packet_id] = (at, fingerprint)
        if packet.qos == 2:
            self._exactly_once[packet_id] = None
        return at

    def refuse(self, packet_id: int, code: ReasonCode) -> None:
        """Note that an open message is not taken; `acknowledge` says so in its turn."""
        self.refused[packet_id] = code
        self._safe[packet_id] = None

    def acknowledge(self, packet_ids: Iterable[int]) -> bytes:
        """Note that these messages are safe; return the answers that may leave, maybe none.

        They leave in the order the messages came. Packet ids that are not open are passed over.
        """
        unacknowledged = self.unacknowledged
        safe = self._safe
        for packet_id in packet_ids:
            if packet_id in unacknowledged:
                safe[packet_id] = None
        leaving = []
        for packet_id in unacknowledged:
            if packet_id not in safe:
                break
            leaving.append(packet_id)
        if self._exactly_once or self.refused:
            answers = b"".join([self._answer(packet_id) for packet_id in leaving])
        else:
            remember = self.receipts.remember
            for packet_id in leaving:
                remember(packet_id, unacknowledged.pop(packet_id))
            answers = encode_pubacks(leaving)
        for packet_id in leaving:
            del safe[packet_id]
        if self.is_full and len(unacknowledged) <= self._window // 2:
            self.is_full = False
        return answers

    def _answer(self, packet_id: int) -> bytes:
        """Close a message's account and return what it is answered by."""
        receipt = self.unacknowledged.pop(packet_id)
        code = self.refused.pop(packet_id, ReasonCode.SUCCESS)
        if packet_id not in self._exactly_once:
            if not code:
                self.receipts.remember(packet_id, receipt)
            return encode_acknowledgement(PUBACK, packet_id, code)
        del self._exactly_once[packet_id]
        if not code:
            self.received[packet_id] = None
        return encode_acknowledgement(PUBREC, packet_id, code)

    def release(self, packet_id: int) -> bool:
        """Forget a message of QoS 2, as its PUBREL asks; False if there is none."""
        if packet_id not in self.received:
            return False
        del self.received[packet_id]
        return True

    def look_at_window(self, level: int) -> None:
        """Be full if the device has sent as much unanswered as it may.

        Raises ProtocolViolation if it has sent more and should have known, or would not be stopped
        by not being read.
        """
        window = self._window
        if level == LEVEL_5:
            if len(self.unacknowledged) + len(self.received) > window:
                raise ProtocolViolation(
                    f"more than {window} messages at once", ReasonCode.RECEIVE_MAXIMUM_EXCEEDED
                )
        elif len(self.received) > window:
            raise ProtocolViolation(
                f"more than {window} messages not released", ReasonCode.UNSPECIFIED_ERROR
            )
        else:
            self.is_full = len(self.unacknowledged) >= window

    def resume(self, kept: Kept) -> None:
        """Go on where the device's last connection ended."""
        self.received = dict.fromkeys(kept.received)
        self.receipts.recall(kept.unfinished)

    def end(self) -> None:
        """Remember what was not acknowledged: it will come again."""
        self.receipts.remember_unacknowledged(self.unacknowledged)
