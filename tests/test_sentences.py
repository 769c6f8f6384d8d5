"""Sentence spans: verbatim, complete, and where a reader would put them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.sentences import spans, split


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith paid 3.50 dollars. He left.", ["Dr. Smith paid 3.50 dollars.", "He left."]),
        ("J. R. R. Tolkien wrote it. It sold.", ["J. R. R. Tolkien wrote it.", "It sold."]),
        ("See e.g. Fig. 3 and No. 7. Then stop.", ["See e.g. Fig. 3 and No. 7.", "Then stop."]),
        ("It was Acme Inc. The firm closed.", ["It was Acme Inc.", "The firm closed."]),
        ("Acme Inc. Chairman Lee spoke.", ["Acme Inc. Chairman Lee spoke."]),
        ("At 5 p.m. The bell rang.", ["At 5 p.m.", "The bell rang."]),
        ("He lived in the U.S. Army barracks.", ["He lived in the U.S. Army barracks."]),
        ('"Stop!" he said. "Why?" she asked.', ['"Stop!" he said.', '"Why?" she asked.']),
        ("She said (twice.) Then she left.", ["She said (twice.)", "Then she left."]),
        ("Wait... Now go.", ["Wait...", "Now go."]),
        ("Is it? No. It is not.", ["Is it?", "No.", "It is not."]),
        ("Version 2.13.0 is out. Get it at example.org/a.b now.",
         ["Version 2.13.0 is out.", "Get it at example.org/a.b now."]),
        ("1. Unpack the box.\n2. Plug it in. Wait.", ["1. Unpack the box.", "2. Plug it in.", "Wait."]),
        ("- first item\n- second item\n* third", ["- first item", "- second item", "* third"]),
        ("A hard-wrapped sentence that goes\non in the next line, where it ends. And\nanother one here.",
         ["A hard-wrapped sentence that goes\non in the next line, where it ends.", "And\nanother one here."]),
        ("Notice period\n\nFour weeks apply.", ["Notice period", "Four weeks apply."]),
        ("Notice period\nEvery employee has a notice period of four weeks to the end.",
         ["Notice period", "Every employee has a notice period of four weeks to the end."]),
        ("Name: Acme | Price: 3. The best\nName: Bolt | Price: 4", ["Name: Acme | Price: 3. The best",
                                                                 "Name: Bolt | Price: 4"]),
        ("これは文です。次の文です！「はい。」と言った", ["これは文です。", "次の文です！", "「はい。」", "と言った"]),
        ("यह एक है। यह दो है।", ["यह एक है।", "यह दो है।"]),
        ("", []),
        (" \n\n ", []),
    ],
)  # fmt: skip
def test_splits_where_a_reader_would(text: str, expected: list[str]) -> None:
    assert split(text) == expected


pieces = st.lists(
    st.sampled_from([". ", ".", "!", "? ", "\n", "\n\n", " ", "- ", "1. ", " | ", "Dr", "e.g", "A", "word", "。", "…",
                     '"', ")", "\t", "\f", "\x85", "\u2029", "\u00a0", "3.5", "Z"]),
    max_size=60,
).map("".join)  # fmt: skip


@given(st.one_of(st.text(max_size=300), pieces))
def test_spans_are_ordered_trimmed_and_leave_nothing_out(text: str) -> None:
    found = spans(text)
    position = 0
    for start, end in found:
        assert position <= start < end <= len(text)
        assert not text[position:start].strip()
        assert not text[start].isspace()
        assert not text[end - 1].isspace()
        position = end
    assert not text[position:].strip()


def test_long_runs_of_marks_stay_linear() -> None:
    """Doubling the text must not cost anything like four times as much: 400,000 dots would take hours if it did."""
    text = "Contents " + "." * 400_000 + " 7\n" + ". " * 100_000 + "\n" * 100_000 + "x|" * 100_000
    began = time.process_time()
    assert spans(text)
    assert time.process_time() - began < 60  # a hang guard, not a measurement
