"""What the gateway knows of passkeys: whose site it is, and which challenge an answer is to."""

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from libs.common.errors import Conflict, Unauthenticated

CHALLENGE_LIFETIME = timedelta(minutes=5)
LOCALHOST = "localhost"

Credential = Mapping[str, Any]
"""What the browser gives, as JSON (PublicKeyCredential.toJSON); tenancy looks at it."""


class Purpose(StrEnum):
    """What a challenge was made for; it is good for nothing else."""

    REGISTER = "register"
    LOG_IN = "log_in"
    SECOND_STEP = "second_step"


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The site that passkeys are bound to: its name, and the origins its pages come from."""

    id: str
    origins: tuple[str, ...]


def relying_party(
    public_url: str, allowed_origins: Collection[str], asking: str | None
) -> RelyingParty:
    """Return the site: that of the public address, else localhost for a page that comes from there.

    `asking` is the origin of the page that asks. Raises Conflict if there is no such site: browsers
    bind a passkey to a name, and take no IP address.
    """
    if public_url:
        name = urlsplit(public_url).hostname or ""
        others = (o for o in sorted(allowed_origins) if _is_below(urlsplit(o).hostname or "", name))
        return RelyingParty(name, (origin_of(public_url), *others))
    if asking is not None and urlsplit(asking).hostname == LOCALHOST:
        return RelyingParty(LOCALHOST, (asking,))
    raise Conflict("passkeys need the address that people use: whoever runs this sets it")


def challenge_of(credential: Credential) -> bytes:
    """Return the challenge that an authenticator's answer says it is to. Raises Unauthenticated."""
    try:
        data = json.loads(_decoded(credential["response"]["clientDataJSON"]))
        return _decoded(data["challenge"])
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise Unauthenticated("the passkey's answer is not valid") from error


def origin_of(url: str) -> str:
    """Return scheme, host and port of an address, as browsers write an Origin."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _is_below(host: str, name: str) -> bool:
    return host == name or host.endswith(f".{name}")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
