"""MQTT control packets of both levels, 3.1.1 (level 4) and 5, as values.

The bracketed names (MQTT-x.y.z-n) are the numbered statements of the OASIS standards: of 3.1.1 (29
October 2014) where both have them, else of 5.0 (7 March 2019).
"""

from enum import IntEnum

from msgspec import Struct

LEVEL_4 = 4
"""The protocol level of MQTT 3.1.1."""
LEVEL_5 = 5
"""The protocol level (version) of MQTT 5.0."""


class ReasonCode(IntEnum):
    """The reason codes of MQTT 5 that are said here; 3.1.1 has its own for CONNACK alone."""

    SUCCESS = 0x00
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    RETAIN_NOT_SUPPORTED = 0x9A
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1


class ConnectCode(IntEnum):
    """The return codes of a CONNACK of 3.1.1."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL_LEVEL = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


class ProtocolViolation(Exception):
    """The peer broke a rule of the protocol; the connection must be closed [MQTT-4.8.0-1].

    `reason` names the rule, `code` is what a device of MQTT 5 is told. `packets` are those that lay
    whole before the offence in the same `feed`, so that what a peer did rightly does not depend on
    how the network cut its bytes.
    """

    def __init__(self, reason: str, code: ReasonCode = ReasonCode.MALFORMED_PACKET) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.packets: list[Packet] = []


class Properties(Struct, frozen=True, gc=False, omit_defaults=True):
    """The properties of a packet of MQTT 5; None for what is absent. `user` keeps order and repeats."""

    payload_format: int | None = None
    message_expiry: int | None = None
    content_type: str | None = None
    response_topic: bytes | None = None
    correlation_data: bytes | None = None
    subscription_id: int | None = None
    session_expiry: int | None = None
    assigned_client_id: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_info: int | None = None
    will_delay: int | None = None
    request_response_info: int | None = None
    response_info: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    maximum_packet_size: int | None = None
    wildcards_available: int | None = None
    subscription_ids_available: int | None = None
    shared_available: int | None = None
    user: tuple[tuple[str, str], ...] = ()


class Will(Struct, frozen=True, gc=False):
    """What a device asks to be published for it if its connection ends without a DISCONNECT."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties | None = None


class Connect(Struct, frozen=True):
    """A device introduces itself. `keep_alive` is in seconds, 0 for none.

    `clean_session` is Clean Start at level 5.
    """

    client_id: str
    username: str | None = None
    password: bytes | None = None
    clean_session: bool = True
    keep_alive: int = 0
    will: Will | None = None
    level: int = LEVEL_4
    properties: Properties | None = None


class UnsupportedConnect(Struct, frozen=True, gc=False):
    """A CONNECT of a protocol level that is not read here; answered by CONNACK 0x01."""

    protocol_name: str
    protocol_level: int


class Publish(Struct, frozen=True, gc=False):
    """A message. `packet_id` is 0 exactly when `qos` is 0. `topic` is checked UTF-8.

    A topic alias is resolved already. `properties` is None where there are none.
    """

    topic: bytes
    payload: bytes
    packet_id: int = 0
    qos: int = 0
    dup: bool = False
    retain: bool = False
    properties: Properties | None = None


class Puback(Struct, frozen=True, gc=False):
    """The answer to a QoS 1 PUBLISH. `code` is from 0x80 on if it was not taken."""

    packet_id: int
    code: int = 0
    properties: Properties | None = None


class Pubrec(Struct, frozen=True, gc=False):
    """The first answer to a QoS 2 PUBLISH. `code` is from 0x80 on if it was not taken."""

    packet_id: int
    code: int = 0
    properties: Properties | None = None


class Pubrel(Struct, frozen=True, gc=False):
    """The answer to a PUBREC."""

    packet_id: int
    code: int = 0
    properties: Properties | None = None


class Pubcomp(Struct, frozen=True, gc=False):
    """The answer to a PUBREL."""

    packet_id: int
    code: int = 0
    properties: Properties | None = None


class Subscribe(Struct, frozen=True):
    """A wish to receive: (topic filter as checked UTF-8, requested QoS), at least one."""

    packet_id: int
    filters: tuple[tuple[bytes, int], ...]
    properties: Properties | None = None


class Unsubscribe(Struct, frozen=True):
    """A wish to receive no longer: topic filters as checked UTF-8, at least one."""

    packet_id: int
    filters: tuple[bytes, ...]
    properties: Properties | None = None


class Pingreq(Struct, frozen=True, gc=False):
    """A sign of life."""


class Disconnect(Struct, frozen=True, gc=False):
    """A polite end: the will is to be forgotten, unless `code` asks for it."""

    code: int = 0
    properties: Properties | None = None


class Auth(Struct, frozen=True, gc=False):
    """A step of an extended authentication, which is not offered."""

    code: int = 0
    properties: Properties | None = None


Packet = (
    Connect
    | UnsupportedConnect
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Unsubscribe
    | Pingreq
    | Disconnect
    | Auth
)

LARGEST_REMAINING_LENGTH = 268_435_455
