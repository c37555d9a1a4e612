"""What a device and we know of each other from CONNECT and CONNACK."""

from msgspec import Struct

from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.packets import LEVEL_4, LEVEL_5, Connect, Properties


class Terms(Struct, frozen=True, gc=False):
    """What a device has said of itself in its CONNECT."""

    level: int = LEVEL_4
    keep_alive: int = 0
    """Seconds; 0 for none."""
    asked_expiry: int = 0
    """For how many seconds it wants its session kept once the connection is over."""
    largest_packet: int = 0
    """Bytes of the largest packet it reads. 0: any."""
    commands_at_once: int = 0
    """How many of QoS 1 and 2 it may be sent without an answer."""

    def fits(self, data: bytes) -> bool:
        """Whether the device reads so large a packet."""
        return not 0 < self.largest_packet < len(data)


UNKNOWN = Terms()
"""Of a device whose CONNECT has not come."""


def terms_of(packet: Connect, limits: Limits) -> Terms:
    """Return the terms of a CONNECT, within the limits."""
    properties = packet.properties or Properties()
    if packet.level == LEVEL_5:
        return Terms(
            packet.level,
            packet.keep_alive,
            properties.session_expiry or 0,
            properties.maximum_packet_size or 0,
            min(limits.send_window, properties.receive_maximum or limits.send_window),
        )
    return Terms(
        packet.level,
        packet.keep_alive,
        0 if packet.clean_session else limits.session_expiry,
        0,
        limits.send_window,
    )


def welcome(terms: Terms, limits: Limits, expiry_s: int) -> Properties | None:
    """Return what a device of MQTT 5 must know of us; `expiry_s` is how long its session is kept."""
    if terms.level == LEVEL_4:
        return None
    return Properties(
        session_expiry=None if expiry_s == terms.asked_expiry else expiry_s,
        receive_maximum=limits.receive_window,
        maximum_packet_size=limits.max_packet_size,
        topic_alias_maximum=limits.topic_aliases,
        retain_available=0,
        subscription_ids_available=0,
        shared_available=0,
    )
