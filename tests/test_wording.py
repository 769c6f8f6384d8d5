"""How well a text words a question."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from assistant.wording import Wording
from assistant.words import stems

QUESTION = "Who painted the north wall?"
TERMS = {"paint": 2.0, "north": 1.0, "wall": 1.0}


def test_words_in_one_breath_fit_better_than_words_here_and_there() -> None:
    fit = Wording(QUESTION, TERMS).fit
    apart = "The north is cold. " + "Other things stand here meanwhile. " * 12 + "Ada painted it, and a wall fell."
    assert fit("Ada painted the north wall.") == 1
    assert fit("North of the wall, Ada painted.") > fit(apart) > fit("Ada saw a wall.") > fit("Ada left.") == 0


def test_words_side_by_side_fit_better_than_the_same_words_in_another_order() -> None:
    fit = Wording(QUESTION, TERMS).fit
    assert fit("Painted by Ada: the north wall.") > fit("Painted by Ada: the wall, north.")


def test_a_heading_counts_as_words_but_not_as_their_neighbours() -> None:
    fit = Wording(QUESTION, TERMS).fit
    assert fit("Ada painted it.") < fit("Ada painted it.", "North wall") < fit("Ada painted the north wall.")


def test_rare_words_weigh_more() -> None:
    fit = Wording(QUESTION, TERMS).fit
    assert fit("It was painted.") > fit("It was north.")


def test_a_question_of_one_word_or_none_has_no_pairs() -> None:
    assert Wording("painted", {"paint": 1.0}).fit("Ada painted.") == 1
    assert Wording("?", {}).fit("Ada painted.") == 0
    assert Wording("painted", {"paint": 0.0}).fit("Ada painted.") == 0


@given(st.text(max_size=60), st.text(max_size=300), st.text(max_size=30))
def test_it_is_a_share_whatever_is_asked_and_said(question: str, text: str, heading: str) -> None:
    terms = dict.fromkeys(stems(question), 0.3)
    assert 0 <= Wording(question, terms).fit(text, heading) <= 1 + 1e-9
