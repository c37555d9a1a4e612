"""The one spelling of an email address."""

import pytest

from libs.common.email import normalise_email
from libs.common.errors import Invalid


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("Ann@Acme.Example", "ann@acme.example"),
        ("  ann@acme.example ", "ann@acme.example"),
        ("admin@plant.local", "admin@plant.local"),
        ("admin@localhost", "admin@localhost"),
        ("admin@\u217cocalhost", "admin@localhost"),
        ("admin@\uff4cocalhost", "admin@localhost"),
        ("admin@xn--exmple-cua.de", "admin@ex\u00e4mple.de"),
        ("zoe\u0308@ex\u00e4mple.de", "zo\u00eb@ex\u00e4mple.de"),
    ],
)
def test_an_address_has_one_spelling(typed: str, kept: str) -> None:
    assert normalise_email(typed) == kept
    assert normalise_email(kept) == kept


@pytest.mark.parametrize(
    "typed",
    ["", "ann", "ann@", "@acme.example", "a b@acme.example", "ann@acme..example",
     "Ann <ann@acme.example>", "ann@acme.example\r\nBcc: all@acme.example", "a\0@acme.example"],
)  # fmt: skip
def test_what_is_no_address_is_refused_where_it_stands(typed: str) -> None:
    with pytest.raises(Invalid) as refused:
        normalise_email(typed, "#/admin/email")
    assert [error.pointer for error in refused.value.errors] == ["#/admin/email"]
