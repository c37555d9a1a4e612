"""What a point is made of, wherever it is read or written."""

from enum import IntEnum


class Quality(IntEnum):
    """How far a value is to be trusted, in OPC UA's three grades."""

    GOOD = 0
    UNCERTAIN = 1
    BAD = 2


class Kind(IntEnum):
    """What a series holds. A series keeps the kind of its first point; bools are stored as 0 and 1."""

    NUMBER = 0
    BOOL = 1
    TEXT = 2
