"""What a new password must be like: long, and nothing else (NIST SP 800-63B-4, section 3.1.1.2)."""

import unicodedata

from libs.common.errors import invalid

MIN_LENGTH = 12
MAX_LENGTH = 1024
"""Characters. Longer ones would only cost time."""


def normalise_password(password: str) -> str:
    """Return the password as it is hashed, so that two keyboards that spell alike agree (NFKC)."""
    return unicodedata.normalize("NFKC", password)


def check_new_password(password: str, pointer: str = "#/password") -> None:
    """Raise Invalid at `pointer` if the password is too short or too long; never repeats it."""
    if len(normalise_password(password)) < MIN_LENGTH:
        raise invalid(pointer, f"must have at least {MIN_LENGTH} characters")
    if len(password) > MAX_LENGTH:
        raise invalid(pointer, f"must have at most {MAX_LENGTH} characters")
