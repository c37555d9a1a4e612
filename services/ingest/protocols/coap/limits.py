"""How much the CoAP endpoint of one process bears."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CoapLimits:
    """How much one process bears. What each is for stands in the settings."""

    message_bytes: int
    answer_within_s: float
    """How long a device waits to hear that its points are safe, or that they are not yet."""
    remembered: int
    """Messages that are known when they come again."""
    devices: int
    """Devices that are known by the bytes of their options."""
    observers: int
    strangers_per_minute: int
