"""What one MQTT connection may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost."""

    max_packet_size: int = 262_144
    """Bytes of the largest packet taken, its header included."""
    max_connect_size: int = 16_384
    """Bytes of the largest CONNECT: whoever it is may send one."""
    connect_timeout: float = 10.0
    """Seconds from the connection to its CONNECT, and from there to the outcome."""
    held_bytes: int = 65_536
    """Bytes taken after the CONNECT's own segment while its outcome is open."""
    receive_window: int = 1_000
    """QoS 1 and 2 messages taken and not yet answered to the end. Beyond it a device of 3.1.1 is not
    read from for a while (what its segment holds is still handed out); one of MQTT 5 knows the limit
    and breaks a rule."""
    send_window: int = 100
    """Commands of QoS 1 and 2 sent and not yet answered by the device."""
    remembered_receipts: int = 128
    """Acknowledged packet ids whose time of receipt is kept for a redelivery."""
    topic_aliases: int = 16
    """How many a device of MQTT 5 may give."""
    session_expiry: int = 7 * 86_400
    """Seconds for which a session is kept at most when its device is away."""
    messages_per_second: float = 1_000.0
    """What a device may send on average; beyond it is read more slowly."""
    burst: float = 5_000.0
    """How many messages it may send at once."""
    over_quota_s: float = 60.0
    """For how long it may want to send more, before it is disconnected."""
