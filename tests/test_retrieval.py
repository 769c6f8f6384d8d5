"""Search: queries from follow-ups, fusion, merged neighbours, scopes, with the real embedder and stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from assistant import retrieval
from assistant.embedding import Embedder
from assistant.index import Index
from assistant.records import SHARED, Chunk, DocumentInfo, Scope, Turn
from assistant.retrieval import Retrieval, match_expression, plan

TEXTS = {
    "handbook.md": [
        "The notice period is six weeks to the end of a month. Notice must be given in writing.",
        "For managers the notice period is three months to the end of a quarter.",
        "You may work from home up to two days a week, after the trial period.",
    ],
    "kettle.pdf": [
        "The K2 kettle holds 1.7 litres and switches off by itself when the water boils.",
        "Descale the kettle every three months with citric acid, never with vinegar.",
    ],
    "prices.csv": ["Model: K2 | Price: 49 EUR | Colour: steel", "Model: K3 | Price: 79 EUR | Colour: copper"],
}


def add(index: Index, embedder: Embedder, name: str, texts: Sequence[str], owner: str = SHARED, *, overlap: int = -9
        ) -> list[Chunk]:  # fmt: skip
    info = DocumentInfo(f"id-{name}", name, name, "ready", "", 1, 0, 0, 0.0, owner=owner)
    chunks, at = [], 0
    for n, text in enumerate(texts):
        chunks.append(Chunk(f"{name}-{n}", info.id, n, text, at, at + len(text)))
        at += len(text) - overlap
    index.begin_document(info)
    index.add_chunks(info.id, chunks, embedder.embed([chunk.text for chunk in chunks]))
    return chunks


@pytest.fixture
def index(tmp_path: Path, embedder: Embedder) -> Iterator[Index]:
    with Index.open(tmp_path, dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        for name, texts in TEXTS.items():
            add(index, embedder, name, texts)
        yield index


@pytest.fixture
def search(index: Index, embedder: Embedder) -> Iterator[Retrieval]:
    search = Retrieval(index, embedder)
    yield search
    search.close()


def turn(question: str, number: int = 1) -> Turn:
    return Turn(number, "s", None, question, "", "done", 0.0)


def test_a_first_question_is_one_query() -> None:
    [query] = plan("How long is it?")
    assert (query.text, query.weight) == ("How long is it?", 1)


def test_a_follow_up_is_searched_with_what_was_asked_before() -> None:
    queries = plan("And for managers?", [turn(f"question {n}?", n) for n in range(6)])
    assert [query.text.split("\n") for query in queries] == [
        ["And for managers?"],
        ["question 0?", "question 3?", "question 4?", "question 5?", "And for managers?"],
    ]


def test_earlier_questions_are_not_embedded_again(search: Retrieval, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
                                                  ) -> None:  # fmt: skip
    search.search("How long is the notice period?")
    embedded: list[str] = []
    embed = embedder.embed
    monkeypatch.setattr(embedder, "embed", lambda texts, **how: embedded.extend(texts) or embed(texts, **how))
    search.search("And for managers?", turns=[turn("How long is the notice period?")])
    assert embedded == ["And for managers?"]


def test_expressions_hold_no_operators() -> None:
    assert match_expression('NEAR("x" AND kettle*) -price^2') == '"near" OR "kettle" OR "price" OR "2"'
    assert match_expression("") == ""
    assert match_expression("a red red kettle", {"red": 9, "kettle": 1}.__getitem__) == '"kettle" OR "red"'


def test_frequent_words_rank_but_do_not_find_where_rarer_ones_find_enough() -> None:
    counts = {"kettle": 1500, "price": 1600, "red": 1700, "water": 2000}
    assert (
        match_expression("red water kettle", counts.__getitem__)
        == '("kettle" OR "red") AND ("kettle" OR "red" OR "water")'
    )
    assert match_expression("red kettle", counts.__getitem__) == '"kettle" OR "red"'
    assert match_expression("water", counts.__getitem__) == '"water"'


@pytest.mark.parametrize("question", ["", "   ", '"', "\0", "*", "AND OR NOT", "🫖" * 50, "x" * 10_000, "NULL; DROP"])
def test_odd_questions_do_not_break_it(search: Retrieval, question: str) -> None:
    assert len(search.search(question).hits) <= 8


def test_it_finds_by_words_and_by_meaning(search: Retrieval) -> None:
    assert search.search("K3 price").hits[0].chunk.text.startswith("Model: K3")
    assert search.search("How do I remove limescale?").hits[0].chunk.id == "kettle.pdf-1"


def test_hits_say_what_each_arm_said(search: Retrieval) -> None:
    result = search.search("notice period")
    assert {"cosine, question", "BM25, question"} <= set(result.hits[0].parts)
    assert 0 < result.hits[0].score <= 1
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)


def test_a_follow_up_needs_its_past(search: Retrieval) -> None:
    result = search.search("And for managers?", turns=[turn("How long is the notice period?")])
    assert result.hits[0].chunk.id == "handbook.md-1"
    price = search.search("And the K3?", turns=[turn("What is the price of the K2?")])
    assert price.hits[0].chunk.id == "prices.csv-1"


def test_a_change_of_subject_is_not_held_back(search: Retrieval) -> None:
    past = [turn("How long is the notice period?"), turn("And for managers?")]
    found = search.search("How often must the kettle be descaled with citric acid?", turns=past)
    assert found.hits[0].chunk.id == "kettle.pdf-1"
    assert sum(query.weight for query in found.queries) < sum(query.weight for query in plan("x", past))


def test_rare_words_weigh_more(search: Retrieval) -> None:
    terms = search.search("notice period of managers").terms
    assert terms[retrieval.stem("managers")] > terms[retrieval.stem("period")] > 0


def test_neighbours_are_merged_and_the_text_stays_verbatim(index: Index, embedder: Embedder, search: Retrieval) -> None:
    whole = "Tea is made with boiling water. Green tea wants eighty degrees. Black tea wants five minutes of time."
    cuts = [(0, 63), (32, len(whole))]
    info = DocumentInfo("tea", "tea", "tea", "ready", "", 1, 0, 0, 0.0)
    chunks = [Chunk(f"tea-{n}", "tea", n, whole[a:b], a, b) for n, (a, b) in enumerate(cuts)]
    index.begin_document(info)
    index.add_chunks("tea", chunks, embedder.embed([chunk.text for chunk in chunks]))
    hits = [hit for hit in search.search("green tea and black tea").hits if hit.document.id == "tea"]
    assert [(hit.chunk.text, hit.chunk.start, hit.chunk.end) for hit in hits] == [(whole, 0, len(whole))]


def test_what_says_the_same_comes_once(index: Index, embedder: Embedder, search: Retrieval) -> None:
    add(index, embedder, "copy.md", [TEXTS["kettle.pdf"][1]])
    texts = [hit.chunk.text for hit in search.search("descale the kettle").hits]
    assert texts.count(TEXTS["kettle.pdf"][1]) == 1


def test_scope_and_documents_limit_it(index: Index, embedder: Embedder, search: Retrieval) -> None:
    add(index, embedder, "secret.md", ["Ann's notice period is one day."], owner="ann")
    names = {hit.document.name for hit in search.search("notice period", scope=Scope("bob")).hits}
    assert "secret.md" not in names
    assert search.search("Ann's notice period", scope=Scope("ann")).hits[0].document.name == "secret.md"
    only = search.search("notice period", document_ids=["id-kettle.pdf"])
    assert {hit.document.name for hit in only.hits} == {"kettle.pdf"}
    assert search.search("notice period", document_ids=[]).hits == ()


def test_top_k_is_kept(search: Retrieval) -> None:
    assert len(search.search("kettle", top_k=2).hits) == 2


def test_an_empty_index_finds_nothing(tmp_path: Path, embedder: Embedder) -> None:
    folder = tmp_path / "empty"
    with Index.open(folder, dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        search = Retrieval(index, embedder)
        search.warm()
        assert search.search("anything", turns=[turn("before")]).hits == ()
        search.close()


def test_what_is_removed_is_not_found(index: Index, search: Retrieval) -> None:
    index.remove_document("id-kettle.pdf")
    result = search.search("descale the kettle")
    assert all(hit.document.name != "kettle.pdf" for hit in result.hits)
    assert result.queries == (replace(result.queries[0]),)


def test_hits_are_held_against_the_wording_of_the_question(search: Retrieval) -> None:
    """The arms alone can't tell one breath from words here and there; what was read of it is among the parts."""
    hits = search.search("How long is the notice period for managers?").hits
    assert "For managers the notice period" in hits[0].chunk.text
    assert all(0 <= hit.parts["wording"] <= 1 and 0 <= hit.score <= 1 for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
