"""What a device has subscribed to."""

from collections.abc import Iterable

from services.ingest.protocols.mqtt.encoder import SUBSCRIPTION_REFUSED
from services.ingest.protocols.mqtt.packets import LEVEL_4, ReasonCode
from services.ingest.protocols.mqtt.topics import Topics, matches

MOST_SUBSCRIPTIONS = 1_100
"""Of one device: an edge node may have one for each of the devices behind it."""


class Subscriptions:
    """One session's topic filters, with the QoS granted for each."""

    __slots__ = ("_granted",)

    def __init__(self) -> None:
        self._granted: dict[bytes, int] = {}

    def qos_of(self, topic: bytes) -> int | None:
        """Return with which QoS the device listens to a topic; None if it does not."""
        return max(
            (qos for wanted, qos in self._granted.items() if matches(wanted, topic)),
            default=None,
        )

    def add(self, filters: Iterable[tuple[bytes, int]], topics: Topics, level: int) -> list[int]:
        """Grant what the device may hear; return the codes of the SUBACK."""
        return [self._add(topic_filter, qos, topics, level) for topic_filter, qos in filters]

    def _add(self, topic_filter: bytes, qos: int, topics: Topics, level: int) -> int:
        if topic_filter not in self._granted and len(self._granted) >= MOST_SUBSCRIPTIONS:
            return SUBSCRIPTION_REFUSED if level == LEVEL_4 else ReasonCode.QUOTA_EXCEEDED
        if topics.may_hear(topic_filter):
            self._granted[topic_filter] = qos
            return qos
        if level == LEVEL_4:
            return SUBSCRIPTION_REFUSED
        if topic_filter.startswith(b"$share/"):
            return ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
        return ReasonCode.NOT_AUTHORIZED

    def remove(self, filters: Iterable[bytes]) -> list[int]:
        """End subscriptions; return the codes of the UNSUBACK."""
        return [
            ReasonCode.SUCCESS
            if self._granted.pop(topic_filter, None) is not None
            else ReasonCode.NO_SUBSCRIPTION_EXISTED
            for topic_filter in filters
        ]

    def kept(self) -> dict[str, int]:
        """Return them as they are written down."""
        return {topic_filter.decode(): qos for topic_filter, qos in self._granted.items()}

    def resume(self, kept: dict[str, int], topics: Topics) -> None:
        """Take up what was written down, as far as the device may still hear it."""
        self._granted = {
            topic_filter: qos
            for text, qos in kept.items()
            if topics.may_hear(topic_filter := text.encode())
        }
