"""Tokens of devices, as far as the gateway must know them: to let them pass to ingest, who verifies them."""

import re

_SHAPE = re.compile(r"iiotd_[A-Za-z0-9_-]{43}")


def is_device_token(text: str) -> bool:
    """Whether a credential has the shape of a device's token."""
    return _SHAPE.fullmatch(text) is not None
