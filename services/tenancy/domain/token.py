"""The tokens that go by mail, to a user's own address: whoever shows one reads what is sent there.

256 random bits, so that a plain SHA-256 is enough to keep of them; made when the mail is sent.
"""

import secrets
from datetime import timedelta
from enum import StrEnum

CONFIRMED_WITHIN = timedelta(hours=24)
RESET_WITHIN = timedelta(hours=1)


class TokenPurpose(StrEnum):
    """What a token of a user's is good for."""

    RESET = "reset"
    CONFIRM = "confirm"


class Prefix(StrEnum):
    """What a token begins with, so that one found in a log is known for what it is."""

    INVITATION = "iioti_"
    REGISTRATION = "iiotv_"
    RESET = "iiotp_"
    CONFIRM = "iiotc_"


def new_token(prefix: Prefix) -> str:
    """Return a fresh token."""
    return prefix + secrets.token_urlsafe(32)
