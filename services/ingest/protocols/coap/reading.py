"""In which form a CoAP message is written, and who reads it."""

from libs.common.errors import UnsupportedMedia
from services.ingest.domain.device import Source
from services.ingest.domain.formats import recognise
from services.ingest.domain.payload import Read
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.protocols.coap.datagram import FORMATS as NUMBERS


def reader_for(source: Source, number: int | None, payload: bytes) -> tuple[PayloadFormat, Read]:
    """Return the form that a message is written in, with its reader.

    Its Content-Format says it; without one the device's profile does; without that the payload is
    looked at. Raises UnsupportedMedia.
    """
    named = None
    if number is not None:
        named = NUMBERS.get(int(number))
        if named is None:
            known = ", ".join(str(known) for known in NUMBERS)
            raise UnsupportedMedia(f"Content-Format {int(number)}: taken are {known}")
    return recognise(payload, named, source.profile)
