"""The token that somebody shows in an Authorization header."""

import base64
import binascii


def shown_token(authorization: str | None) -> str | None:
    """Return the token of `Bearer <token>`, of InfluxDB's `Token <token>`, or the password of `Basic`,
    for those who can send nothing else; None if there is none.
    """
    scheme, _, shown = (authorization or "").partition(" ")
    shown = shown.strip()
    if scheme.lower() in {"bearer", "token"}:
        return shown or None
    if scheme.lower() != "basic":
        return None
    try:
        _, _, password = base64.b64decode(shown, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return password or None
