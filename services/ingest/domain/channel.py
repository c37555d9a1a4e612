"""What devices speak of."""

from enum import StrEnum


class Channel(StrEnum):
    """What a message is about. Over MQTT it is the last level of the topic."""

    TELEMETRY = "telemetry"
    STATUS = "status"
    ALERTS = "alerts"
    ATTRIBUTES = "attributes"
    """What the device says of itself that is no time series: firmware, serial number."""
    REPLIES = "replies"
    """What became of a command that was sent to the device."""
