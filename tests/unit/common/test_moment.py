"""Times in requests."""

import pytest
from pydantic import TypeAdapter, ValidationError

from libs.common.http.schemas import Moment


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_utc_cannot_hold_is_a_fault_of_the_request(text: str) -> None:
    with pytest.raises(ValidationError, match="calendar"):
        TypeAdapter(Moment).validate_python(text)
