"""Tokens of devices, as far as the gateway must know them: to let them pass to ingest, who verifies them."""

import re

_SHAPE = re.compile(r"iiotd_[A-Za-z0-9_-]{43}")

_TAKEN = frozenset(
    f"/api/v1/telemetry{path}"
    for path in ("", "/influx", "/influx/write", "/influx/api/v2/write", "/influx/query")
)


def is_device_token(text: str) -> bool:
    """Whether a credential has the shape of a device's token."""
    return _SHAPE.fullmatch(text) is not None


def may_ask(method: str, path: str) -> bool:
    """Whether a device's token is good for this: sending telemetry, and what is about itself alone."""
    if method == "POST" and path in _TAKEN:
        return True
    return path.startswith("/api/v1/devices/me/")
