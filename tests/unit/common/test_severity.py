import pytest

from libs.common.severity import Severity


def test_severities_are_ordered_by_weight_and_not_by_letters() -> None:
    worst_first = sorted(Severity, reverse=True)

    assert worst_first == ["critical", "high", "medium", "low", "info"]
    assert max(Severity.LOW, Severity.HIGH) is Severity.HIGH
    assert Severity.HIGH >= "high" > Severity.MEDIUM
    assert [severity.rank for severity in worst_first] == [4, 3, 2, 1, 0]


def test_a_word_that_is_no_severity_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="urgent"):
        _ = Severity.LOW < "urgent"
