"""Records: text that every sink can encode."""

import pytest

from mlotel_cli.records import valid_text


@pytest.mark.parametrize(
    ("text", "expected"), [("plate", "plate"), ("plaqué", "plaqué"), ("a\udcff\ud800", "a\\udcff\\ud800")]
)
def test_valid_text_escapes_what_utf_8_cannot_hold(text: str, expected: str) -> None:
    assert valid_text(text) == expected
    valid_text(text).encode()
