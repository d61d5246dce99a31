"""docs/api.md is what the docstrings say now."""

import importlib

import pytest

from tests import api_page


def test_the_page_is_that_of_the_docstrings():
    found = api_page.PAGE.read_text(encoding="utf-8")
    assert found == api_page.page(), "run: make docs"


@pytest.mark.parametrize("module", api_page.SHOWN)
def test_what_the_page_shows_can_be_imported(module):
    found = importlib.import_module(f"ubrain_jax.{module}")
    for name in api_page.SHOWN[module]:
        assert getattr(found, name).__doc__
        title = api_page.title_of(module, name)
        assert f"\n### {title}\n" in api_page.PAGE.read_text(encoding="utf-8")


def test_words_before_a_colon_stay_in_what_is_returned():
    text = api_page.PAGE.read_text(encoding="utf-8")
    assert "**Returns** Dataset with spatial (image, voxel, tap, y, x): att" in text
    assert "**Returns** (voxel,) float64; NaN where" in text
