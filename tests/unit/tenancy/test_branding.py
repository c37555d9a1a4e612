"""Colours that can be read."""

import pytest

from libs.common.errors import Invalid
from services.tenancy.domain.branding import Branding, contrast


def test_contrast_is_as_the_guidelines_reckon_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#ff0000", "#ffffff") == pytest.approx(4.0, abs=0.01)


def test_a_colour_must_be_readable_where_it_stands() -> None:
    Branding(colour_on_light="#0b5cad", colour_on_dark="#7cc4ff").check()
    for unreadable in (
        Branding(colour_on_light="#777777"),
        Branding(colour_on_light="#ffff00"),
        Branding(colour_on_dark="#0000aa"),
        Branding(colour_on_light="red"),
        Branding(colour_on_light="#12345"),
        Branding(colour_on_dark="#fff;}*{"),
    ):
        with pytest.raises(Invalid):
            unreadable.check()
