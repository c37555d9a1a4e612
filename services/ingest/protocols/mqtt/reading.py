"""In which form a message's payload is written, and who reads it."""

from datetime import datetime

from libs.common.errors import AppError, Invalid, UnsupportedMedia
from libs.common.historian.point import Quality
from services.ingest.domain.device import Source
from services.ingest.domain.formats import FORMATS, format_of, sniff, with_defaults
from services.ingest.domain.payload import Decoded, Read, Window
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.protocols.mqtt.packets import Properties

_QUALITIES = {quality.name.lower(): quality for quality in Quality}


def form_of(source: Source, payload: bytes) -> PayloadFormat:
    """Return the form of a payload that comes without a word on it: its profile's, or what it looks like."""
    if source.profile is not None and source.profile.payload_format is not None:
        return source.profile.payload_format
    if payload.startswith(b"{"):
        return PayloadFormat.JSON
    return sniff(payload)


def reader_of(written: PayloadFormat) -> Read:
    """Return the reader of a form; of one that is not taken by MQTT, one that says so."""
    read = FORMATS.get(written)
    return read or _refusing(UnsupportedMedia(f"{written} is not taken here"))


def read_by(
    source: Source,
    properties: Properties | None,
    payload: bytes,
    own: PayloadFormat | None = None,
) -> tuple[PayloadFormat, Read]:
    """Return the form of a payload, with the properties of MQTT 5 if it has any, and its reader.

    The content type names the form; without one it is the connection's `own`, if it has one. The user
    properties are heard as `with_said` tells. What cannot be understood is said by the reader, as of
    any payload that is wrong.
    """
    written: PayloadFormat | None
    if properties is None or properties.content_type is None:
        written = own or form_of(source, payload)
    else:
        written = format_of(properties.content_type)
        if written is None:
            named = properties.content_type[:80]
            return PayloadFormat.JSON, _refusing(
                UnsupportedMedia(f"the content type {named!r} is not read")
            )
    return written, with_said(reader_of(written), properties)


def with_said(read: Read, properties: Properties | None) -> Read:
    """Return a reader that hears the user properties `unit` and `quality`: they are those of all
    values that have none of their own.
    """
    said = dict(properties.user) if properties is not None else {}
    quality = None
    if "quality" in said:
        quality = _QUALITIES.get(said["quality"].lower())
        if quality is None:
            return _refusing(Invalid(f"a quality is one of {', '.join(_QUALITIES)}"))
    return with_defaults(read, said.get("unit"), quality)


def _refusing(error: AppError) -> Read:
    def refuse(payload: bytes, received_at: datetime, window: Window) -> Decoded:
        raise error

    return refuse
