"""In which form a CoAP message is written, and who reads it."""

from libs.common.errors import UnsupportedMedia
from services.ingest.domain.device import Source
from services.ingest.domain.formats import FORMATS, sniff
from services.ingest.domain.payload import Read
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.protocols.coap.datagram import FORMATS as NUMBERS


def reader_for(source: Source, number: int | None, payload: bytes) -> tuple[PayloadFormat, Read]:
    """Return the form that a message is written in, with its reader.

    Its Content-Format says it; without one the device's profile does; without that the payload is
    looked at. Raises UnsupportedMedia.
    """
    if number is not None:
        written = NUMBERS.get(int(number))
        if written is None:
            known = ", ".join(str(known) for known in NUMBERS)
            raise UnsupportedMedia(f"Content-Format {int(number)}: taken are {known}")
    else:
        declared = source.profile.payload_format if source.profile is not None else None
        written = declared or sniff(payload)
    read = FORMATS.get(written)
    if read is None:
        raise UnsupportedMedia(f"{written} is not taken by CoAP")
    return written, read
