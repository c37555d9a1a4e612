"""Which service a path belongs to."""

import pytest

from services.gateway.domain.routes import OWNERS, segment_of


@pytest.mark.parametrize(
    ("path", "segment"),
    [
        ("/api/v1/devices", "devices"),
        ("/api/v1/devices/", "devices"),
        ("/api/v1/devices/7/credentials", "devices"),
        ("/api/v1/devices/a..b/.hidden", "devices"),
        ("/api/v1/", ""),
        ("/api/v1", None),
        ("/api/v2/devices", None),
        ("/internal/v1/users", None),
        ("//api/v1/devices", None),
        ("/api/v1/devices/../../../internal", None),
        ("/api/v1/devices/./7", None),
        ("/api/v1/../v1/devices", None),
    ],
)
def test_the_first_segment_decides(path: str, segment: str | None) -> None:
    assert segment_of(path) == segment


def test_nothing_internal_has_an_owner() -> None:
    assert not {"internal", "auth", "ws", "docs", "openapi.json", ""} & OWNERS.keys()
