"""Chunks: verbatim, never too long, whole sentences, the same again after an edit nearby."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assistant.chunking import extracted, split
from assistant.records import Chunk, Segment


class MiniLM:
    """The packaged embedder's own tokenizer, without its model."""

    max_tokens = 256

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)


@pytest.fixture(scope="session")
def minilm(packaged_models: Path) -> MiniLM:
    return MiniLM(packaged_models / "all-minilm-l6-v2")


def prose(paragraphs: int, seed: int = 0) -> list[Segment]:
    return [
        Segment(
            " ".join(
                f"Rule {seed}-{number}-{sentence} says that engine {number * sentence} needs {sentence} litres of oil."
                for sentence in range(1, 3 + number % 7)
            )
        )
        for number in range(1, paragraphs + 1)
    ]


def verify(segments: list[Segment], chunks: list[Chunk], embedder: MiniLM, limit: int = 256) -> None:
    text = "".join(extracted(segments))
    covered = bytearray(len(text))
    for number, chunk in enumerate(chunks):
        assert chunk.position == number
        assert chunk.text == text[chunk.start : chunk.end] != ""
        assert embedder.count(chunk.text) <= limit
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    assert not "".join(character for character, seen in zip(text, covered, strict=True) if not seen).strip()
    assert len({chunk.id for chunk in chunks}) == len(chunks)


def test_prose_becomes_full_chunks_of_whole_sentences_that_overlap(minilm: MiniLM) -> None:
    segments = prose(60)
    chunks = list(split(segments, minilm))
    verify(segments, chunks, minilm)
    assert all(chunk.text.startswith("Rule") and chunk.text.endswith("oil.") for chunk in chunks)
    assert all(minilm.count(chunk.text) > 100 for chunk in chunks[:-1])
    overlaps = [before.end - after.start for before, after in pairwise(chunks)]
    assert all(overlap < 200 for overlap in overlaps)
    assert sum(overlap > 0 for overlap in overlaps) > len(overlaps) / 2


def test_pages_are_never_crossed_and_headings_only_by_tiny_sections(minilm: MiniLM) -> None:
    body = "The pump delivers eleven litres a minute at two bar. " * 6
    segments = [
        Segment("Manual", page=1, heading=("Manual",), kind="heading"),
        Segment("Pump", page=1, heading=("Manual", "Pump"), kind="heading"),
        Segment(body.strip(), page=1, heading=("Manual", "Pump")),
        Segment("Tiny", page=1, heading=("Manual", "Tiny"), kind="heading"),
        Segment("One word.", page=1, heading=("Manual", "Tiny")),
        Segment("Valve", page=1, heading=("Manual", "Valve"), kind="heading"),
        Segment(body.strip(), page=1, heading=("Manual", "Valve")),
        Segment("Short.", page=2, heading=("Manual", "Valve")),
        Segment("Last.", page=3, label="A-1", heading=("Manual", "Valve")),
    ]
    chunks = list(split(segments, minilm))
    verify(segments, chunks, minilm)
    assert [(chunk.page, chunk.heading) for chunk in chunks] == [
        (1, "Manual > Pump"), (1, "Manual"), (2, "Manual > Valve"), (3, "Manual > Valve"),
    ]  # fmt: skip
    assert chunks[0].text.startswith("Manual\n\nPump\n\nThe pump")
    assert chunks[1].text.startswith("Tiny\n\nOne word.\n\nValve")


def test_a_heading_never_stands_alone_at_the_end_of_a_chunk(minilm: MiniLM) -> None:
    long = "Water the plants on Mondays and Thursdays before noon, please, and never at night. "
    for repeats in range(5, 16):
        segments = [Segment((long * repeats).strip()), Segment("Tools", kind="heading"), Segment((long * 9).strip())]
        chunks = list(split(segments, minilm))
        verify(segments, chunks, minilm)
        assert not any(chunk.text.endswith("Tools") for chunk in chunks)


def test_rows_stay_whole_and_keep_their_numbers(minilm: MiniLM) -> None:
    rows = [Segment(f"Name: part {n} | Price: {n}.50 | Stock: {n * 3}", row=n, kind="row", glue="\n")
            for n in range(2, 80)]  # fmt: skip
    chunks = list(split(rows, minilm))
    verify(rows, chunks, minilm)
    for chunk in chunks:
        assert chunk.row is not None
        assert chunk.text.startswith(f"Name: part {chunk.row} |")
        assert all(line.startswith("Name: ") and line.count(" | ") == 2 for line in chunk.text.split("\n"))


def test_lines_are_counted(minilm: MiniLM) -> None:
    text = "\n".join(f"Line number {n} tells of the {n}th lamp in the long hall." for n in range(1, 101))
    chunks = list(split([Segment(text, line=7)], minilm))
    assert len(chunks) > 3
    for chunk in chunks:
        assert chunk.text.startswith(f"Line number {(chunk.line or 0) - 6} ")


def test_an_edit_changes_only_the_chunks_around_it(minilm: MiniLM) -> None:
    before = prose(120)
    after = [*before[:30], Segment("A new paragraph came in. It says something about the weather in May."),
             *before[30:80], replace(before[80], text=before[80].text + " And a rider."), *before[81:]]  # fmt: skip
    old, new = ({chunk.id for chunk in split(each, minilm, document_id="d")} for each in (before, after))
    assert len(old) > 25
    assert len(new - old) <= 10


def test_ids_depend_on_document_and_occurrence(minilm: MiniLM) -> None:
    same = [Segment("Page left blank.", page=page) for page in range(1, 4)]
    one = [chunk.id for chunk in split(same, minilm, document_id="a")]
    assert len(set(one)) == 3
    assert one == [chunk.id for chunk in split(same, minilm, document_id="a")]
    assert not set(one) & {chunk.id for chunk in split(same, minilm, document_id="b")}


def test_gibberish_without_a_blank_is_cut(minilm: MiniLM) -> None:
    segments = [Segment("x" * 100_000), Segment("漢字" * 5_000), Segment("=" * 3_000)]
    chunks = list(split(segments, minilm))
    verify(segments, chunks, minilm)
    assert max(len(chunk.text) for chunk in chunks) <= 2_560


def test_memory_does_not_depend_on_length(minilm: MiniLM) -> None:
    """The packer must give chunks while it reads: at most a few segments are taken before the first one comes."""
    taken = 0

    def endless() -> Iterator[Segment]:
        nonlocal taken
        while True:
            taken += 1
            yield Segment(f"Sentence {taken} of a book without an end, and so it goes on and on and on.")

    chunks = split(endless(), minilm)
    for _ in range(20):
        next(chunks)
    assert taken < 20 * 20


segment = st.builds(
    Segment,
    text=st.one_of(
        st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=200),
        st.lists(st.sampled_from(["word ", "Dr. ", "end. ", "\n", "漢", "…", "x" * 50, "| ", "1. "]), min_size=1)
        .map("".join),
    ),
    page=st.one_of(st.none(), st.integers(1, 3)),
    heading=st.lists(st.sampled_from(["A", "B"]), max_size=2).map(tuple),
    line=st.one_of(st.none(), st.integers(1, 9)),
    kind=st.sampled_from(["text", "heading", "row", "code"]),
    glue=st.sampled_from(["\n\n", "\n", " "]),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(segment, max_size=12), st.integers(8, 64))
def test_any_segments_give_verbatim_chunks_within_the_limit(
    minilm: MiniLM, segments: list[Segment], limit: int
) -> None:
    verify(segments, list(split(segments, minilm, max_tokens=limit, overlap_tokens=8)), minilm, limit)
