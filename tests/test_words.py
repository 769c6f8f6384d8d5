"""Words as searches compare them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from assistant.words import content_words, stem, stems, words


def test_case_diacritics_and_punctuation_do_not_matter() -> None:
    assert words("Café-Größe, naïve: 3.5") == ["cafe", "große", "naive", "3", "5"]


def test_function_words_are_dropped_unless_nothing_else_is_there() -> None:
    assert content_words("How long is the notice period?") == ["long", "notice", "period"]
    assert content_words("And what is it?") == ["and", "what", "is", "it"]


def test_forms_of_a_word_share_a_stem() -> None:
    for forms in (("period", "periods"), ("stop", "stopped", "stopping"), ("policy", "policies"), ("leave", "leaves"),
                  ("move", "moves", "moving", "moved"), ("class", "classes"), ("quick", "quickly")):  # fmt: skip
        assert len({stem(form) for form in forms}) == 1, forms
    assert stem("bus") == "bus"
    assert stem("2024s") == "2024s"


@given(st.text())
def test_any_text_has_words_and_stems(text: str) -> None:
    assert all(words(text))
    assert all(stems(text))
    assert set(content_words(text)) <= set(words(text))
