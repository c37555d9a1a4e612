"""How much the CoAP endpoint of one process bears."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CoapLimits:
    """How much one process bears. What each is for stands in the settings."""

    message_bytes: int = 65_536
    answer_within_s: float = 5.0
    """How long a device waits to hear that its points are safe, or that they are not yet."""
    remembered: int = 500_000
    """Messages that are known when they come again."""
    remembered_bytes: int = 32 * 1024 * 1024
    """Of their answers, where these are not all alike."""
    devices: int = 50_000
    """Devices that are known by the bytes of their options."""
    observers: int = 10_000
    strangers_per_minute: int = 60
    assemblies: int = 256
    """Messages that come in blocks just now."""
