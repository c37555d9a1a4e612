"""What devices speak of."""

from enum import StrEnum


class Channel(StrEnum):
    """What a message is about. Over MQTT it is the last level of the topic."""

    TELEMETRY = "telemetry"
    STATUS = "status"
    ALERTS = "alerts"
