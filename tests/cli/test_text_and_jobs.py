from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.errors import DocumentError
from flowblend_cli.jobs import Job
from flowblend_cli.text import printable, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("ünïcödé 👩‍🚀", "ünïcödé 👩‍🚀"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("\x9b \u202e \u2028 \n \ud800", "\\x9b \\u202e \\u2028 \\n \\ud800"),
        ("[/b]", "[/b]"),
    ],
)
def test_only_characters_that_control_a_terminal_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@settings(max_examples=100)
@given(st.text(st.characters(codec=None), max_size=30))
def test_shown_text_is_one_line_that_any_stream_takes(text: str) -> None:
    shown = printable(text)

    assert len(shown.splitlines()) <= 1
    assert shown.encode().decode() == shown
    assert printable(shown) == shown
    assert len(shorten(text, 10)) <= 10


@pytest.mark.parametrize("document", [{}, {"arguments": 3}, {"arguments": {}, "stages": [1]}])
def test_a_damaged_document_is_no_job(document: dict[str, object]) -> None:
    with pytest.raises(DocumentError, match="can't be read"):
        Job.from_document(document)
