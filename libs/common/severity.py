"""How bad it is: the one scale that rules, models, devices and alerts share."""

from enum import StrEnum


class Severity(StrEnum):
    """Five steps, ordered by weight: `Severity.CRITICAL > Severity.HIGH`.

    The values are the words used on the wire and in SQL. Comparing with a word that is no
    severity raises ValueError.
    """

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info up to 4 for critical, for sorting where the word cannot be compared."""
        return _RANKS[self.value]

    # A string would compare by its letters, and "high" < "low".
    def __lt__(self, other: str) -> bool:
        return self.rank < Severity(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Severity(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Severity(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Severity(other).rank


_RANKS = {severity.value: rank for rank, severity in enumerate(Severity)}
