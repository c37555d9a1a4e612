"""When messages were first received, kept over a restart of the process.

A device that misses its answer because the process died sends its message again. Such a message is
taken again, since nobody knows whether it was durable, but with the time at which it was first received:
so its points, if they have no `ts` of their own, are the same points, and stored once.

A ring of fixed size in a file: a note is written before its message goes on, and is in the kernel's
hands when the process is killed. (Not when the machine loses power: nothing is synced.) The file is
written, not mapped: of a disk that is full or a file that was cut a write tells, where a mapping kills.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import structlog

from services.ingest.protocols.coap.duplicates import EXCHANGE_LIFETIME_S, Address

log = structlog.get_logger(__name__)

_MAGIC = b"coapjnl2"
MOST_PACKED = 20_000
_NOTE = struct.Struct("<16sHIq")
"""Address, port, the datagram's CRC, time of receipt in µs since 1970; 30 bytes."""


class Sent(NamedTuple):
    """What a datagram that comes again is known by."""

    host: bytes
    port: int
    crc: int


class JournalTaken(Exception):
    """Another process writes this file."""


class Journal:
    """The latest so many messages, with their times of receipt. One process a file."""

    def __init__(self, path: Path, most: int) -> None:
        """Open the file, or make it. Raises JournalTaken, or OSError if it cannot be used."""
        self._most = most
        self._packed: dict[str, bytes] = {}
        self._is_failing = False
        size = len(_MAGIC) + most * _NOTE.size
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open(size)
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise JournalTaken(f"{path} is another process's") from None
            raise

    def _open(self, size: int) -> None:
        is_ours = (
            os.fstat(self._file).st_size == size and os.pread(self._file, len(_MAGIC), 0) == _MAGIC
        )
        if not is_ours:
            os.ftruncate(self._file, 0)
            # Not a hole, which a full disk could not fill later.
            os.posix_fallocate(self._file, 0, size)
            os.pwrite(self._file, _MAGIC, 0)
        newest = max(enumerate(self._notes()), key=lambda note: (note[1][3], note[0]))
        self._position = (newest[0] + 1) % self._most if newest[1][3] else 0

    def close(self) -> None:
        """Let go of the file; what is noted stays."""
        os.close(self._file)

    def note(self, address: Address, datagram: bytes, received_at: int) -> None:
        """Note when a message was received, in µs since 1970."""
        host = self._packed.get(address[0]) or self._pack(address[0])
        note = _NOTE.pack(host, address[1], crc32(datagram), received_at)
        try:
            os.pwrite(self._file, note, len(_MAGIC) + self._position * _NOTE.size)
        except OSError as error:
            # Devices are served all the same: what they send again after a restart may be stored twice.
            if not self._is_failing:
                log.error("coap: the journal cannot be written", error=str(error))
            self._is_failing = True
            return
        self._is_failing = False
        self._position = (self._position + 1) % self._most

    def between(self, earliest: int, latest: int) -> dict[Sent, int]:
        """Return when messages were received, as far as that was in this time (µs since 1970)."""
        found: dict[Sent, int] = {}
        for host, port, crc, received_at in self._notes():
            if earliest <= received_at <= latest:
                sent = Sent(host, port, crc)
                # The same bytes after so long are another message: the newest note stands.
                found[sent] = max(received_at, found.get(sent, 0))
        return found

    def _notes(self) -> Iterator[tuple[Any, ...]]:
        return _NOTE.iter_unpack(os.pread(self._file, self._most * _NOTE.size, len(_MAGIC)))

    def _pack(self, host: str) -> bytes:
        if len(self._packed) >= MOST_PACKED:
            self._packed.clear()
        packed = self._packed[host] = pack(host)
        return packed


def sent(address: Address, datagram: bytes) -> Sent:
    """Return what a datagram is known by when it comes again."""
    return Sent(pack(address[0]), address[1], crc32(datagram))


def pack(host: str) -> bytes:
    """Return an address as 16 bytes, one of IPv4 as IPv6 writes it."""
    host = host.partition("%")[0]
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host)
    return bytes(10) + b"\xff\xff" + socket.inet_aton(host)


def recent(journal: Journal, now: int) -> dict[Sent, int]:
    """Return what the devices may still send again at a time, in µs since 1970."""
    return journal.between(now - round(EXCHANGE_LIFETIME_S * 1_000_000), now)


def open_journal(folder: Path | None, most: int) -> Journal | None:
    """Return the journal in a folder, or None where there is none to be had."""
    if folder is None:
        return None
    try:
        return Journal(folder / "coap-received", most)
    except (JournalTaken, OSError) as error:
        # Devices are served all the same: what they send again after a restart may be stored twice.
        log.error("coap: no journal", folder=str(folder), error=str(error))
        return None
