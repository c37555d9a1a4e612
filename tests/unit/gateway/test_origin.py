"""Which sites a tenant may name."""

import pytest

from libs.common.errors import Invalid
from services.gateway.domain.origin import parse_origin


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://portal.example", "https://portal.example"),
        ("HTTPS://Portal.Example:443/", "https://portal.example"),
        ("https://portal.example:8443", "https://portal.example:8443"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_an_origin_is_kept_as_browsers_spell_it(text: str, kept: str) -> None:
    assert parse_origin(text, "#") == kept


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "null",
        "",
        "portal.example",
        "https://",
        "https://*.example",
        "https://portal.example/app",
        "https://portal.example?x",
        "https://portal.example#x",
        "https://ann@portal.example",
        "https://portal.example:99999",
        "http://portal.example",
        "http://localhost.evil.example",
        "ftp://portal.example",
        "javascript:alert(1)",
        "https://" + "a" * 300,
    ],
)
def test_what_is_no_origin_or_could_be_anybody_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_origin(text, "#")
