"""What lies in a Modbus device's registers: which to ask for together, and what they mean. Pure."""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

MOST_REGISTERS = 125
MOST_BITS = 2_000
"""In one request: the protocol's own limits."""
WIDEST_GAP = 16
"""Registers read for nothing rather than asked around: a request costs more than they do."""


class Table(StrEnum):
    """The four address spaces of a device."""

    COIL = "coil"
    DISCRETE = "discrete"
    HOLDING = "holding"
    INPUT = "input"

    @property
    def is_bits(self) -> bool:
        """Whether it holds bits rather than words."""
        return self in (Table.COIL, Table.DISCRETE)

    @property
    def is_writable(self) -> bool:
        """Whether it can be written."""
        return self in (Table.COIL, Table.HOLDING)


class Type(StrEnum):
    """How registers are to be read."""

    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    UINT32 = "uint32"
    INT64 = "int64"
    UINT64 = "uint64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"


_FORMATS = {
    Type.INT16: "h",
    Type.UINT16: "H",
    Type.INT32: "i",
    Type.UINT32: "I",
    Type.INT64: "q",
    Type.UINT64: "Q",
    Type.FLOAT32: "f",
    Type.FLOAT64: "d",
}
Order = Literal["big", "little"]


@dataclass(frozen=True, slots=True)
class Register:
    """Where a value lies, and how it is written there. The value is what is there × scale + offset."""

    table: Table
    address: int
    type: Type
    word_order: Order = "big"
    """Which word of several comes first."""
    byte_order: Order = "big"
    """Which byte of a word comes first: the protocol says the big one, not all devices do."""
    length: int = 1
    """Of a string, in registers."""
    bit: int | None = None
    """Of a bool in a word: which bit, from 0, the least. None: whether the word is not 0."""
    scale: float = 1.0
    offset: float = 0.0

    @property
    def size(self) -> int:
        """How many registers, or bits, it takes."""
        if self.table.is_bits or self.type is Type.BOOL:
            return 1
        if self.type is Type.STRING:
            return self.length
        return struct.calcsize(f"={_FORMATS[self.type]}") // 2

    @property
    def end(self) -> int:
        """The address after its last."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Block:
    """What is asked for with one request."""

    table: Table
    address: int
    count: int
    registers: tuple[Register, ...]
    """Those that are read by it; no other reads them."""

    def __str__(self) -> str:
        return f"{self.table} {self.address} to {self.address + self.count - 1}"


def blocks(registers: Iterable[Register]) -> list[Block]:
    """Return few requests that cover all registers; none cuts a value in two."""
    by_address = sorted(registers, key=lambda register: register.address)
    found: list[Block] = []
    for table in Table:
        most = MOST_BITS if table.is_bits else MOST_REGISTERS
        start = end = 0
        covered: list[Register] = []
        for register in by_address:
            if register.table is not table:
                continue
            if covered and (
                register.address > end + WIDEST_GAP or max(end, register.end) - start > most
            ):
                found.append(Block(table, start, end - start, tuple(covered)))
                covered = []
            if not covered:
                start = end = register.address
            end = max(end, register.end)
            covered.append(register)
        if covered:
            found.append(Block(table, start, end - start, tuple(covered)))
    return found


def words_of(register: Register, block: Block, read: Sequence[int]) -> list[int]:
    """Return a register's own words, or bits, out of what was read."""
    first = register.address - block.address
    return list(read[first : first + register.size])


def value_of(register: Register, words: Sequence[int]) -> bool | float | str:
    """Return what the words mean. Raises ValueError if they mean nothing."""
    if register.table.is_bits:
        return bool(words[0])
    if register.type is Type.BOOL:
        (word,) = _ordered(register, words)
        return bool(word if register.bit is None else word >> register.bit & 1)
    packed = struct.pack(f">{len(words)}H", *_ordered(register, words))
    if register.type is Type.STRING:
        # Behind the end of a shorter text there often lies what was left of a longer one.
        text = packed.partition(b"\0")[0].rstrip(b" ")
        return text.decode("latin-1" if _is_not_utf8(text) else "utf-8")
    (raw,) = struct.unpack(f">{_FORMATS[register.type]}", packed)
    if register.scale == 1.0 and register.offset == 0.0:
        value = float(raw)
    else:
        # Scales are written in decimals: what they bring in beyond these is not measured.
        value = float(f"{raw * register.scale + register.offset:.12g}")
    if not math.isfinite(value):
        raise ValueError(f"the registers hold {raw}, which is no number")
    return value


def words_for(register: Register, value: object) -> list[int]:
    """Return the words, or the bit, to write for a value. Raises ValueError if it does not fit."""
    if not register.table.is_writable:
        raise ValueError(f"a register of kind {register.table} cannot be written")
    if register.table.is_bits or register.type is Type.BOOL:
        if register.bit is not None:
            raise ValueError("one bit of a word cannot be written without its neighbours")
        if not isinstance(value, bool):
            raise ValueError("the register holds a bool")
        return _ordered(register, [int(value)])
    if register.type is Type.STRING:
        encoded = value.encode() if isinstance(value, str) else None
        if encoded is None or len(encoded) > 2 * register.length:
            raise ValueError(f"the registers hold a text of at most {2 * register.length} bytes")
        packed = encoded.ljust(2 * register.length, b"\0")
    else:
        packed = _packed_number(register, value)
    words = list(struct.unpack(f">{len(packed) // 2}H", packed))
    return _ordered(register, words)


def _packed_number(register: Register, value: object) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("the register holds a number")
    raw = (value - register.offset) / register.scale
    try:
        if register.type in (Type.FLOAT32, Type.FLOAT64):
            return struct.pack(f">{_FORMATS[register.type]}", raw)
        return struct.pack(f">{_FORMATS[register.type]}", round(raw))
    except (struct.error, OverflowError):
        raise ValueError(f"{value} does not fit into an {register.type}") from None


def _ordered(register: Register, words: Sequence[int]) -> list[int]:
    ordered = list(words)
    if register.word_order == "little":
        ordered.reverse()
    if register.byte_order == "little":
        ordered = [(word >> 8) | (word & 0xFF) << 8 for word in ordered]
    return ordered


def _is_not_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False
