"""What a tenant lets its devices do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """A tenant's policy for its devices. What is not said is not allowed."""

    plain_coap: bool = False
    """Whether devices may speak CoAP with neither OSCORE nor DTLS: their tokens, and what they say, can
    be read on the way."""
