"""How a tenant looks to its people: its name, its colours, and the words of its mails."""

import re
from dataclasses import dataclass

from libs.common.errors import invalid

LEAST_CONTRAST = 4.5
"""What text of ordinary size needs (WCAG 2.2, level AA, criterion 1.4.3)."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\Z")
_WHITE, _BLACK = "#ffffff", "#000000"


@dataclass(frozen=True, slots=True)
class Branding:
    """A tenant's look; None: the installation's own."""

    product_name: str | None = None
    colour_on_light: str | None = None
    """Of what stands on white, as #rrggbb; white stands on it as well."""
    colour_on_dark: str | None = None
    """Of what stands on black; black stands on it as well."""
    sender_name: str | None = None
    """Whom its mails are from, beside the installation's address."""
    email_footer: str | None = None

    def check(self) -> None:
        """Raise Invalid for a colour that is none, or that could not be read where it stands."""
        for field, ground, what in (
            ("colour_on_light", _WHITE, "white"),
            ("colour_on_dark", _BLACK, "black"),
        ):
            colour: str | None = getattr(self, field)
            if colour is None:
                continue
            if not _COLOUR.match(colour):
                raise invalid(f"#/{field}", "a colour reads #rrggbb")
            found = contrast(colour, ground)
            if found < LEAST_CONTRAST:
                reason = (
                    f"its contrast with {what} is {found:.2f}:1, and must be {LEAST_CONTRAST}:1"
                )
                raise invalid(f"#/{field}", reason)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (_linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)
