"""Email addresses, by which users are known.

Tenancy looks users up by them and the gateway counts attempts to log in by them: both must take
the same spellings for the same address.
"""

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

from libs.common.errors import invalid

MAX_LENGTH = 254

# A plant's own network has such names, and an installation without mail has them too; mail never
# leaves to them on its own account.
for _name in ("local", "localhost", "test"):
    if _name in SPECIAL_USE_DOMAIN_NAMES:
        SPECIAL_USE_DOMAIN_NAMES.remove(_name)


def normalise_email(address: str, pointer: str = "#/email") -> str:
    """Return the one spelling under which the address is kept: lower case throughout.

    (The standard lets a host tell `Ann@` from `ann@`; none does, and people cannot.)
    Raises Invalid at `pointer` if it is no address.
    """
    try:
        valid = validate_email(
            address.strip(), check_deliverability=False, globally_deliverable=False
        )
    except EmailNotValidError:
        raise invalid(pointer, "is not an email address") from None
    return valid.normalized.lower()
