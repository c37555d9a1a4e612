"""Who a device says it is in its CONNECT."""

from dataclasses import dataclass
from uuid import UUID

from services.ingest.domain.token import is_token
from services.ingest.protocols.mqtt.packets import (
    LEVEL_5,
    Connect,
    ReasonCode,
    Will,
)
from services.ingest.protocols.mqtt.thingsboard import ThingsBoardTopics
from services.ingest.protocols.mqtt.topics import Aside, Topics, show


class NotIntroduced(Exception):
    """The CONNECT does not say who it is; `code` and `reason` say what is wrong."""

    def __init__(self, code: ReasonCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Introduction:
    """Who a device says it is, what is to prove it, and which topics it means."""

    device_id: UUID | None
    """None: its token alone says who it is."""
    password: bytes
    topics: Topics
    by_certificate: bool = False
    """What is to prove it is the certificate that it has shown; there is no password."""


def introduction_of(packet: Connect, *, has_certificate: bool = False) -> Introduction:
    """Return who it is: client id and user name are both the device's id, the password its token.

    Who `has_certificate` needs neither user name nor password, only its id as the client id. A token
    as the user name, and no password, is how devices made for ThingsBoard come: with whatever client
    id, and with ThingsBoard's topics. Its will must be one that it may leave. Raises NotIntroduced.
    """
    if packet.properties is not None and packet.properties.authentication_method is not None:
        raise NotIntroduced(ReasonCode.BAD_AUTHENTICATION_METHOD, "an authentication method")
    introduced = _introduction_of(packet, has_certificate=has_certificate)
    if packet.will is not None:
        _check_will(packet.will, packet.level, introduced.topics)
    return introduced


def _introduction_of(packet: Connect, *, has_certificate: bool) -> Introduction:
    if packet.username is not None and not packet.password and is_token(packet.username):
        return Introduction(None, packet.username.encode(), ThingsBoardTopics.of_anybody())
    if not packet.client_id:
        raise NotIntroduced(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "an empty client id")
    if has_certificate and not packet.password:
        return _by_certificate(packet)
    if packet.username is None or packet.password is None:
        raise NotIntroduced(ReasonCode.NOT_AUTHORIZED, "no credentials")
    if packet.client_id != packet.username:
        raise NotIntroduced(
            ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "client id and user name differ"
        )
    device_id = _read_device_id(packet.username)
    if device_id is None:
        raise NotIntroduced(ReasonCode.BAD_USER_NAME_OR_PASSWORD, "the user name is no device id")
    return Introduction(device_id, packet.password, Topics.own(device_id))


def _by_certificate(packet: Connect) -> Introduction:
    device_id = _read_device_id(packet.client_id)
    if device_id is None or packet.username not in (None, "", packet.client_id):
        raise NotIntroduced(
            ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "the client id is not the device's id alone"
        )
    return Introduction(device_id, b"", Topics.own(device_id), by_certificate=True)


def _check_will(will: Will, level: int, topics: Topics) -> None:
    if topics.channel_of(will.topic) is None and topics.aside_of(will.topic) is not Aside.EDGE_NODE:
        raise NotIntroduced(ReasonCode.NOT_AUTHORIZED, f"a will for {show(will.topic)}")
    if will.retain and level == LEVEL_5:
        raise NotIntroduced(ReasonCode.RETAIN_NOT_SUPPORTED, "a will to be retained")


def _read_device_id(text: str) -> UUID | None:
    """Return the id if `text` is a UUID in its one usual form, which the topics too have."""
    try:
        device_id = UUID(text)
    except ValueError:
        return None
    return device_id if str(device_id) == text else None
