"""Quotes, the judgement and the check of answers, over real searches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant import grounding, judgement, quotes
from assistant.chunking import extracted, split
from assistant.embedding import Embedder
from assistant.index import Index
from assistant.records import DocumentInfo, Segment, Turn
from assistant.retrieval import Retrieval

DOCUMENTS = {
    "handbook.md": [
        Segment("# Notice", heading=("Notice",), line=1, kind="heading"),
        Segment("The trial period is three months. Afterwards the notice period is six weeks to the end\nof a month. "
                "For managers the notice period is three months to the end of a quarter. Notice must be given in "
                "writing.", heading=("Notice",), line=3),
        Segment("How many days may I work from home?", heading=("Home",), line=9),
        Segment("Two days a week, after the trial period.", heading=("Home",), line=11),
    ],
    "prices.csv": [Segment(f"Model: K{n} | Price: {n}9 EUR | Colour: steel", row=n + 1) for n in range(1, 40)],
    "kettle.pdf": [Segment("Descale the kettle every three months with citric acid. Never use vinegar.", page=7)],
}  # fmt: skip


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[Retrieval]:
    folder = tmp_path_factory.mktemp("store")
    with Index.open(folder, dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        for name, segments in DOCUMENTS.items():
            info = DocumentInfo(name, name, name, "ready", "", 1, 0, 0, 0.0)
            chunks = list(split(segments, embedder, document_id=name))
            index.begin_document(info)
            index.add_chunks(name, chunks, embedder.embed([chunk.text for chunk in chunks]))
        search = Retrieval(index, embedder)
        yield search
        search.close()


def test_the_first_quote_answers_and_has_its_place(search: Retrieval, embedder: Embedder) -> None:
    question = "How long is the notice period of managers?"
    first = quotes.select(question, search.search(question), embedder)[0]
    assert first.text == "For managers the notice period is three months to the end of a quarter."
    assert (first.number, first.name, first.heading, first.line) == (1, "handbook.md", "Notice", 4)
    assert first.text in first.context


def test_quotes_are_slices_of_the_extracted_text(search: Retrieval, embedder: Embedder) -> None:
    texts = {name: "".join(extracted(segments)) for name, segments in DOCUMENTS.items()}
    for question in ("notice period", "kettle", "price of K7", "work from home"):
        found = quotes.select(question, search.search(question), embedder, max_quotes=20)
        assert [quote.number for quote in found] == list(range(1, len(found) + 1))
        assert [quote.score for quote in found] == sorted((quote.score for quote in found), reverse=True)
        for quote in found:
            assert texts[quote.document_id][quote.start : quote.end] == quote.text
            assert 0 <= quote.score <= 1


def test_a_table_row_is_a_quote_with_its_header(search: Retrieval, embedder: Embedder) -> None:
    question = "What is the price of the K7?"
    first = quotes.select(question, search.search(question), embedder)[0]
    assert first.text == "Model: K7 | Price: 79 EUR | Colour: steel"
    assert first.row == 8


def test_rows_and_lines_are_those_of_the_file(tmp_path: Path, embedder: Embedder) -> None:
    """Through parser, chunker and index: with empty rows, a sheet's name and a table's rule between."""
    import openpyxl

    from assistant.ingest import Ingestor

    book = openpyxl.Workbook()
    for number, row in {3: ["Lamp", "Hall"], 4: ["brass", 7], 8: ["Lamp", "Cellar"], 9: ["copper", 5]}.items():
        for column, value in enumerate(row, 1):
            book.active.cell(number, column, value)
    (tmp_path / "documents").mkdir()
    book.save(tmp_path / "documents" / "lamps.xlsx")
    text = "# Cups\n\n| Cup | Shelf |\n|-|-|\n| red | 3 |\n| | |\n| blue | 9 |\n\n\nThe green cup was broken in May.\n"
    (tmp_path / "documents" / "cups.md").write_text(text)
    with Index.open(tmp_path / "store", dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        Ingestor(index, embedder).ingest([tmp_path / "documents"])
        for again in (False, True):
            if again:  # what moved without another word keeps its chunks, and gets its new places
                (tmp_path / "documents" / "cups.md").write_text("\n\n" + text)
                assert Ingestor(index, embedder).ingest([tmp_path / "documents"]).chunks_embedded == 0
            search = Retrieval(index, embedder)
            for question, words, row, line in (
                ("copper lamp in the cellar", "copper", 9, None), ("brass lamp in the hall", "brass", 4, None),
                ("red cup", "red", 2, 5), ("blue cup", "blue", 4, 7), ("green cup broken", "green", None, 10),
            ):  # fmt: skip
                found = quotes.select(question, search.search(question), embedder, max_quotes=20)
                (quote,) = [quote for quote in found if words in quote.text]
                assert (quote.row, quote.line) == (row, line and line + 2 * again), words


def test_a_page_is_kept(search: Retrieval, embedder: Embedder) -> None:
    first = quotes.select("citric acid", search.search("citric acid"), embedder)[0]
    assert first.place == "kettle.pdf, page 7"


def test_a_question_in_the_text_speaks_for_its_answer(search: Retrieval, embedder: Embedder) -> None:
    question = "How many days may I work from home?"
    assert quotes.select(question, search.search(question), embedder)[0].text.startswith("Two days a week")


def test_headings_come_after_what_they_head(search: Retrieval, embedder: Embedder) -> None:
    assert not quotes.select("notice", search.search("notice"), embedder)[0].text.startswith("#")


def test_a_follow_up_is_quoted_with_its_past(search: Retrieval, embedder: Embedder) -> None:
    past = [Turn(1, "s", None, "How long is the notice period?", "", "done", 0.0)]
    found = quotes.select("And for managers?", search.search("And for managers?", turns=past), embedder)
    assert found[0].text.startswith("For managers the notice period")


def test_the_budget_is_kept_and_what_is_too_long_makes_room(search: Retrieval, embedder: Embedder) -> None:
    result = search.search("notice period")
    free = quotes.select("notice period", result, embedder)
    for budget in (0, 5, 12, 20, 40):
        found = quotes.select("notice period", result, embedder, budget_tokens=budget, count=lambda t: len(t.split()))
        assert sum(len(quote.text.split()) for quote in found) <= budget
    assert len(free) == 4
    assert len(quotes.select("notice period", result, embedder, max_quotes=2)) == 2


def test_text_without_sentences_is_quoted_in_pieces(embedder: Embedder, tmp_path: Path) -> None:
    text = " ".join(f"word{n}" for n in range(120))
    with Index.open(tmp_path, dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        chunks = list(split([Segment(text)], embedder, document_id="long"))
        index.begin_document(DocumentInfo("long", "long", "long", "ready", "", 1, 0, 0, 0.0))
        index.add_chunks("long", chunks, embedder.embed([chunk.text for chunk in chunks]))
        search = Retrieval(index, embedder)
        found = quotes.select("word17", search.search("word17"), embedder)
        search.close()
    assert "word17" in found[0].text
    assert all(len(quote.text) <= 600 and quote.text in text for quote in found)


def test_nothing_found_is_no_quote_and_no_answer(search: Retrieval, embedder: Embedder) -> None:
    result = search.search("notice", document_ids=[])
    assert quotes.select("notice", result, embedder) == ()
    assert judgement.answerable("notice", result, ()) == 0


def test_the_judgement_tells_answered_from_unanswered(search: Retrieval, embedder: Embedder) -> None:
    def chance(question: str) -> float:
        result = search.search(question)
        return judgement.answerable(question, result, quotes.select(question, result, embedder))

    for question in ("How long is the notice period of managers?", "What is the price of the K7?"):
        assert chance(question) > 0.5, question
    for question in ("Who won the World Cup in 1998?", "What is the password of the wireless network?"):
        assert chance(question) < 0.5, question


def test_what_the_evidence_says_is_supported_and_the_rest_is_not(search: Retrieval, embedder: Embedder) -> None:
    question = "How long is the notice period of managers?"
    found = quotes.select(question, search.search(question), embedder)
    answer = "For managers the notice period is three months [1]. They also get a red company car in Paris."
    good, bad = grounding.check(answer, found, embedder)
    assert (answer[good.start : good.end][:12], good.supported, good.quotes) == ("For managers", True, (1,))
    assert not bad.supported
    assert bad.support < good.support


def test_a_wrong_number_and_a_wrong_name_cost_support(search: Retrieval, embedder: Embedder) -> None:
    question = "What does the K7 cost?"
    found = quotes.select(question, search.search(question), embedder, max_quotes=1)
    right, wrong, other = (
        grounding.check(text, found, embedder)[0].support
        for text in ("The K7 costs 79 EUR.", "The K7 costs 85 EUR.", "The K7 costs 79 Dollar in Berlin.")
    )
    assert right > wrong
    assert right > other


def test_without_evidence_nothing_is_supported(embedder: Embedder) -> None:
    [mark] = grounding.check("It is three months.", (), embedder)
    assert (mark.support, mark.supported, mark.quotes) == (0, False, ())
    assert grounding.check("", (), embedder) == ()
