"""What a new password must be like (NIST SP 800-63B-4, section 3.1.1.2): long, and not easily guessed.

No rules of composition: they make passwords predictable. Refused is what stands on a list of common
passwords or is a trivial variation of that, what repeats or counts up, and what holds the user's own
name, address or tenant.
"""

import re
import unicodedata
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from libs.common.errors import invalid

MAX_LENGTH = 1024
"""Characters. Longer ones would only cost time."""

SHORTEST_WORD = 4
"""Characters. Shorter names occur in anything."""
_SHORTEST_UNIT = 5
"""What repeats something shorter than this is refused whatever it repeats."""

# A 1 is written for an i and for an l.
_LEETS = tuple(str.maketrans("@4831!|05$7+2", f"aabe{one}iiossttz") for one in "il")
_OUTER = re.compile(r"^[\W\d_]+|[\W\d_]+$")
_BETWEEN = re.compile(r"[\W_]+")
_ROWS = (
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890",
    "1234567890",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm",
)
# Long enough for the longest password that is looked at in this way.
_WALKS = tuple(way * 6 for row in _ROWS for way in (row, row[::-1]))


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """What is asked of a new password. `common` gives the list, in lower case, when it is needed."""

    min_length: int
    common: Callable[[], Container[str]]

    def check(self, password: str, *, own: Iterable[str] = (), pointer: str = "#/password") -> None:
        """Raise Invalid at `pointer`, with the rule that is broken; never repeats the password.

        `own` is what the user is called: names, address, tenant.
        """
        spelled = normalise_password(password)
        if len(spelled) < self.min_length:
            raise invalid(pointer, f"must have at least {self.min_length} characters")
        if len(password) > MAX_LENGTH:
            raise invalid(pointer, f"must have at most {MAX_LENGTH} characters")
        folded = spelled.casefold()
        if _repeats_or_counts(folded):
            raise invalid(pointer, "must not repeat or count up a few characters")
        if holds_own(folded, own):
            raise invalid(pointer, "must not hold your name, your address or your tenant's name")
        common = self.common()
        if any(form in common for form in _forms(folded)):
            raise invalid(
                pointer, "is one of the most common passwords, or nearly: others guess it"
            )


def normalise_password(password: str) -> str:
    """Return the password as it is hashed, so that two keyboards that spell alike agree (NFKC)."""
    return unicodedata.normalize("NFKC", password)


def holds_own(folded: str, own: Iterable[str]) -> bool:
    """Whether a password, case-folded, holds a word of what its user is called."""
    readings = (folded, *(folded.translate(leet) for leet in _LEETS))
    return any(word in reading for word in _words(own) for reading in readings)


def _words(own: Iterable[str]) -> set[str]:
    words: set[str] = set()
    for name in own:
        folded = normalise_password(name).casefold()
        # Of an address the part that is the user's: everybody's provider is in everybody's.
        local = folded.rpartition("@")[0] or folded
        words.update({folded, local, *_BETWEEN.split(local)})
    return {word for word in words if len(word) >= SHORTEST_WORD}


def _forms(folded: str) -> set[str]:
    """Return what a password trivially varies: without case, leet, ends, separators, repetition."""
    forms: set[str] = set()
    inner = _OUTER.sub("", folded)
    readings = {folded} | {text.translate(leet) for text in (folded, inner) for leet in _LEETS}
    for reading in readings:
        joined = _BETWEEN.sub("", reading)
        for form in (reading, joined, _OUTER.sub("", reading), _OUTER.sub("", joined)):
            forms.update({form, _unit(form)})
    return forms - {""}


def _repeats_or_counts(folded: str) -> bool:
    joined = _BETWEEN.sub("", folded)
    return (
        # Nothing but separators is nothing.
        len(_unit(joined)) < _SHORTEST_UNIT or any(joined in walk for walk in _WALKS)
    )


def _unit(text: str) -> str:
    """Return the shortest beginning that the text repeats, the last time maybe not whole."""
    for length in range(1, len(text) // 2 + 1):
        if (text[:length] * (len(text) // length + 1))[: len(text)] == text:
            return text[:length]
    return text
