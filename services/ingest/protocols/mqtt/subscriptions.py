"""What a device has subscribed to."""

from collections.abc import Iterable

from services.ingest.protocols.mqtt.encoder import SUBSCRIPTION_REFUSED
from services.ingest.protocols.mqtt.packets import LEVEL_4, ReasonCode
from services.ingest.protocols.mqtt.topics import Topics, matches

MOST_SUBSCRIPTIONS = 1_100
"""Of one device: an edge node may have one for each of the devices behind it."""
MOST_PATTERNS = 32
"""Of these, such as have a wildcard: all are looked at for what is told the device."""


class Subscriptions:
    """One session's topic filters, with the QoS granted for each."""

    __slots__ = ("_granted", "_patterns", "_topics", "commands_qos")

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._granted: dict[bytes, int] = {}
        self._patterns: dict[bytes, int] = {}
        """Of these, the ones with a wildcard."""
        self.commands_qos: int | None = None
        """With which QoS the device listens to its commands; None if it does not."""

    def qos_of(self, topic: bytes) -> int | None:
        """Return with which QoS the device listens to a topic; None if it does not."""
        granted = [qos for wanted, qos in self._patterns.items() if matches(wanted, topic)]
        exactly = self._granted.get(topic)
        if exactly is not None:
            granted.append(exactly)
        return max(granted, default=None)

    def add(self, filters: Iterable[tuple[bytes, int]], level: int) -> list[int]:
        """Grant what the device may hear; return the codes of the SUBACK."""
        return [self._add(topic_filter, qos, level) for topic_filter, qos in filters]

    def _add(self, topic_filter: bytes, qos: int, level: int) -> int:
        if not self._topics.may_hear(topic_filter):
            if level == LEVEL_4:
                return SUBSCRIPTION_REFUSED
            if topic_filter.startswith(b"$share/"):
                return ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
            return ReasonCode.NOT_AUTHORIZED
        if not self._grant(topic_filter, qos):
            return SUBSCRIPTION_REFUSED if level == LEVEL_4 else ReasonCode.QUOTA_EXCEEDED
        return qos

    def _grant(self, topic_filter: bytes, qos: int) -> bool:
        """Note a filter that the device may hear; False if there are as many as may be."""
        is_pattern = b"+" in topic_filter or b"#" in topic_filter
        if topic_filter not in self._granted and (
            len(self._granted) >= MOST_SUBSCRIPTIONS
            or (is_pattern and len(self._patterns) >= MOST_PATTERNS)
        ):
            return False
        self._granted[topic_filter] = qos
        if is_pattern:
            self._patterns[topic_filter] = qos
        self._note_commands(topic_filter)
        return True

    def remove(self, filters: Iterable[bytes]) -> list[int]:
        """End subscriptions; return the codes of the UNSUBACK."""
        return [self._remove(topic_filter) for topic_filter in filters]

    def _remove(self, topic_filter: bytes) -> int:
        if self._granted.pop(topic_filter, None) is None:
            return ReasonCode.NO_SUBSCRIPTION_EXISTED
        self._patterns.pop(topic_filter, None)
        self._note_commands(topic_filter)
        return ReasonCode.SUCCESS

    def _note_commands(self, changed: bytes) -> None:
        """Look anew whether the device listens to its commands, if a filter that changed is about them.

        Only then: what a device may ask thousands of times a second must cost little.
        """
        if matches(changed, self._topics.commands):
            self.commands_qos = self.qos_of(self._topics.commands)

    def kept(self) -> dict[str, int]:
        """Return them as they are written down."""
        return {topic_filter.decode(): qos for topic_filter, qos in self._granted.items()}

    def resume(self, kept: dict[str, int]) -> None:
        """Take up what was written down, as far as the device may still hear it."""
        for text, qos in kept.items():
            if self._topics.may_hear(topic_filter := text.encode()):
                self._grant(topic_filter, qos)
