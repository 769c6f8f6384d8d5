"""Segments into chunks that the embedder can read whole, cut between sentences.

Works on a stream: it holds no more than the chunk it is filling. Knows no document format and no index.

Where a chunk ends is chosen by the words there, not by the distance from the start (content-defined chunking,
Muthitacharoen et al. 2001): after an edit the cuts soon fall where they fell before, so that little has to be embedded
again.
"""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from . import sentences
from .records import Chunk, Segment

TARGET_TOKENS = 230
OVERLAP_TOKENS = 32
_TINY = 6  # a section below a sixth of the target joins the one after it
_FULL = 0.7  # of the target: from here on a chunk ends at the first landmark
_HALF = 0.4  # of the target: from here on it does where a landmark ends a paragraph; else paragraphs of one length, two
# to a chunk, would be paired anew from an edit to the end
_TOKEN_CHARACTERS = 10  # a "token" is counted for every so many characters at least: a tokenizer may take a
# megabyte of gibberish for one unknown word
_SEEN_BITS = 1 << 24
_SLACK = 16  # tokens that joining sentences may add; nearer to the limit a chunk is counted once more
_LANDMARKS = 5  # one unit in so many
_WINDOW = 16_000  # characters of a segment that are looked at together


class Tokenizer(Protocol):
    """What chunking asks of an embedder."""

    @property
    def max_tokens(self) -> int:
        """Longest input it reads, special tokens included."""

    def count(self, text: str) -> int:
        """Return the tokens of *text*, special tokens included."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the span of each token of *text*, without special tokens."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A sentence, a row or a heading: what a chunk is made of. Offsets count in the document's extracted text."""

    start: int
    end: int
    cost: int
    segment: Segment
    line: int | None
    rest: int  # cost from here to the end of the segment
    opens: bool  # the first of its segment
    landmark: bool  # one sentence in five is, by the hash of its words


def extracted(segments: Iterable[Segment]) -> Iterator[str]:
    """Yield a document's extracted text in pieces: what the offsets of its chunks count in."""
    first = True
    for segment in segments:
        yield segment.text if first else segment.glue + segment.text
        first = False


def split(
    segments: Iterable[Segment],
    embedder: Tokenizer,
    *,
    document_id: str = "",
    max_tokens: int | None = None,
    target_tokens: int = TARGET_TOKENS,
    overlap_tokens: int = OVERLAP_TOKENS,
) -> Iterator[Chunk]:
    """Cut a document into chunks, as its segments come.

    A chunk never crosses a page; it crosses a heading only where the section before it is tiny. Chunks of one section
    overlap by whole sentences.

    Args:
        segments: Of one document, in order.
        embedder: Whose tokens count.
        document_id: Goes into the ids.
        max_tokens: Longest chunk, special tokens included; the embedder's limit by default and at most.
        target_tokens: Length at which a chunk is full.
        overlap_tokens: Most tokens that a chunk repeats from the one before.

    Yields:
        Chunks whose text is ``extracted[start:end]``, none longer than *max_tokens*.
    """
    limit = min(max_tokens or embedder.max_tokens, embedder.max_tokens)
    special = max(0, embedder.count("a") - len(embedder.offsets("a")))
    if limit <= special:
        raise ValueError(f"max_tokens must be above {special}")
    target = max(1, min(target_tokens, limit - special))
    yield from _Packer(embedder, document_id, limit, special, target, min(overlap_tokens, target // 2)).pack(segments)


class _Packer:
    def __init__(
        self, embedder: Tokenizer, document_id: str, limit: int, special: int, target: int, overlap: int
    ) -> None:
        self._embedder = embedder
        self._document_id = document_id
        self._limit, self._special, self._target, self._overlap = limit, special, target, overlap
        self._text = ""  # of the document, from _base to where reading is
        self._base = 0
        self._pending: list[_Unit] = []
        self._fresh = 0  # units of _pending that no chunk has had yet
        self._position = 0
        self._seen = bytearray(_SEEN_BITS // 8)  # a Bloom filter (1970): a set of all texts would grow with the file
        self._repeats: dict[bytes, int] = {}

    def pack(self, segments: Iterable[Segment]) -> Iterator[Chunk]:
        first = True
        for segment in segments:
            if not segment.text:
                continue
            if not first:
                self._text += segment.glue
            first = False
            yield from self._turn(segment)
            for unit in self._units(segment):
                yield from self._add(unit)
        yield from self._flush()

    def _turn(self, segment: Segment) -> Iterator[Chunk]:
        """End the chunk where a page or a section ends."""
        if not self._fresh:
            if self._pending and self._pending[-1].segment.page != segment.page:
                self._pending = []
            return
        last = self._pending[-1].segment
        small = sum(unit.cost for unit in self._pending) * _TINY < self._target
        if last.page != segment.page or (last.heading != segment.heading and not small):
            yield from self._flush()
            self._pending = []

    def _add(self, unit: _Unit) -> Iterator[Chunk]:
        total = sum(held.cost for held in self._pending)
        if self._fresh and self._ends(total, unit):
            yield from self._flush(following=unit)
            while self._pending and sum(held.cost for held in self._pending) + unit.cost > self._target:
                if self._fresh == len(self._pending):  # only carried headings are left
                    break
                self._pending.pop(0)
        self._pending.append(unit)
        self._fresh += 1

    def _ends(self, total: int, unit: _Unit) -> bool:
        """Tell whether a chunk of *total* tokens ends before *unit*: not in a paragraph whose rest it can hold."""
        if not unit.opens and total + unit.rest <= self._limit - self._special:
            return False
        if total + unit.cost > self._target:
            return True
        if self._pending[-1].landmark:
            return total >= (_HALF if unit.opens else _FULL) * self._target
        return unit.opens and total >= _FULL * self._target and total + unit.rest > self._target

    def _flush(self, following: _Unit | None = None) -> Iterator[Chunk]:
        """Give the pending chunk; with a *following* unit, keep its overlap and the headings at its end."""
        units, carried = self._pending, list[_Unit]()
        if following is not None:
            while len(units) > 1 and units[-1].segment.kind == "heading":
                carried.insert(0, units.pop())
        new = self._fresh - len(carried)
        self._pending, self._fresh = [], 0
        if new > 0:
            yield from self._give(units)
        if following is not None and not carried and following.segment.kind == "text":
            self._pending = self._repeated(units)
        self._pending += carried
        self._fresh = len(carried)
        keep = self._pending[0].start if self._pending else (following.start if following else self._end)
        self._text, self._base = self._text[keep - self._base :], keep

    def _repeated(self, units: Sequence[_Unit]) -> list[_Unit]:
        """Return the last sentences of a chunk, as many as the overlap allows."""
        kept: list[_Unit] = []
        room = self._overlap
        for unit in reversed(units[1:]):
            room -= unit.cost
            if room < 0 or unit.segment.kind != "text":
                break
            kept.insert(0, unit)
        return kept

    @property
    def _end(self) -> int:
        return self._base + len(self._text)

    def _give(self, units: Sequence[_Unit]) -> Iterator[Chunk]:
        start, end = units[0].start, units[-1].end
        text = self._text[start - self._base : end - self._base]
        counted = sum(unit.cost for unit in units) + self._special
        if len(text) < 2 or counted + _SLACK <= self._limit or self._embedder.count(text) <= self._limit:
            yield self._chunk(units, start, end, text)
        elif len(units) > 1:
            # Joined, some tokenizers make a few more tokens of two texts than of each alone.
            yield from self._give(units[: len(units) // 2])
            yield from self._give(units[len(units) // 2 :])
        else:
            middle = _cut(text, len(text) // 2)
            for half in ((0, middle), (middle, len(text))):
                for first, last in sentences.trimmed(text, *half):
                    yield from self._give([replace(units[0], start=start + first, end=start + last)])

    def _chunk(self, units: Sequence[_Unit], start: int, end: int, text: str) -> Chunk:
        segment = units[0].segment
        number = self._position
        self._position += 1
        return Chunk(
            id=self._identify(text), document_id=self._document_id, position=number, text=text, start=start, end=end,
            page=segment.page, line=units[0].line, heading=" > ".join(_heading(units)),
            row=next((unit.segment.row for unit in units if unit.segment.row is not None), None),
            places=_places(units, text),
        )  # fmt: skip

    def _identify(self, text: str) -> str:
        """Hash the text; the second chunk of the same text gets an id of its own."""
        data = text.encode("utf-8", "surrogatepass")
        short = hashlib.blake2b(data, digest_size=12).digest()
        known = True
        for at in range(0, 12, 3):
            byte, bit = divmod(int.from_bytes(short[at : at + 3]) % _SEEN_BITS, 8)
            known = known and bool(self._seen[byte] >> bit & 1)
            self._seen[byte] |= 1 << bit
        occurrence = 0
        if known:  # or, rarely, taken to be: then its id differs from what it might be, and is still its own
            occurrence = self._repeats[short] = self._repeats.get(short, 0) + 1
        head = f"{self._document_id}\0{occurrence}\0".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(head + data, digest_size=16).hexdigest()

    def _units(self, segment: Segment) -> Iterator[_Unit]:
        """Cut a segment into sentences, and sentences that no chunk could hold at tokens; appends to the text."""
        line, first = segment.line, True
        for window_start, window_end in _windows(segment.text):
            window = segment.text[window_start:window_end]
            base = self._end
            self._text += window
            tokens = [start for start, end in self._embedder.offsets(window) if end > start]
            spans = list(_pieces(window, segment.kind, tokens, self._limit - self._special, self._target))
            rest = sum(cost for _, _, cost in spans)
            for start, end, cost in spans:
                at = None if line is None else line + window.count("\n", 0, start)
                mark = zlib.crc32(window[start:end].encode("utf-8", "surrogatepass")) % _LANDMARKS == 0
                yield _Unit(base + start, base + end, cost, segment, at, rest, first, mark)
                first, rest = False, rest - cost
            if line is not None:
                line += window.count("\n")


def _pieces(text: str, kind: str, tokens: list[int], limit: int, target: int) -> Iterator[tuple[int, int, int]]:
    """Yield the units of a text as (start, end, cost)."""
    if kind == "text":
        spans = sentences.spans(text)
    elif kind == "code":
        spans = list(_lines(text))
    else:
        spans = list(sentences.trimmed(text, 0, len(text)))
    for start, end in spans:
        cost = _cost(tokens, start, end)
        if cost <= limit:
            yield start, end, cost
            continue
        position = start
        while position < end:
            stop = _reach(text, tokens, position, end, target)
            for first, last in sentences.trimmed(text, position, stop):
                yield first, last, _cost(tokens, first, last)
            position = stop


def _cost(tokens: list[int], start: int, end: int) -> int:
    count = bisect_left(tokens, end) - bisect_left(tokens, start)
    return max(count, -(-(end - start) // _TOKEN_CHARACTERS), 1)


def _reach(text: str, tokens: list[int], start: int, end: int, target: int) -> int:
    """Return how far a piece from *start* may go: to a clause's end, a blank, or as far as the target allows."""
    index = bisect_left(tokens, start) + target
    most = min(tokens[index] if index < len(tokens) else end, start + target * _TOKEN_CHARACTERS, end)
    if most >= end:
        return end
    most = max(most, start + 1)
    half = start + (most - start) // 2
    for marks in ("\n", ";:", ",、，", " \t"):
        found = max(text.rfind(mark, half, most) for mark in marks)
        if found > half:
            return found + 1
    return most


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Yield the lines of code, with their indentation but without the empty ones."""
    position = 0
    for line in text.splitlines(keepends=True):
        stripped = line.rstrip()
        if stripped:
            yield position, position + len(stripped)
        position += len(line)


def _windows(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while len(text) - start > _WINDOW:
        end = start + _cut(text[start : start + _WINDOW], _WINDOW - 1)
        yield start, end
        start = end
    yield start, len(text)


def _cut(text: str, wanted: int) -> int:
    """Return a place to cut near before *wanted*: after a line, a sentence or a word where there is one."""
    for mark in ("\n", ". ", " "):
        found = text.rfind(mark, wanted // 2, wanted)
        if found > 0:
            return found + len(mark)
    return max(1, wanted)


def _places(units: Sequence[_Unit], text: str) -> tuple[tuple[int, int | None, int | None], ...]:
    """Return where in a chunk's text rows and lines jump, so that its line breaks alone would count them wrongly."""
    found: list[tuple[int, int | None, int | None]] = []
    at, row, line = 0, next((unit.segment.row for unit in units if unit.segment.row is not None), None), units[0].line
    for unit in units:
        start = unit.start - units[0].start
        below = text.count("\n", at, start)
        counted = (None if row is None else row + below, None if line is None else line + below)
        if counted != (unit.segment.row, unit.line):
            at, row, line = start, unit.segment.row, unit.line
            found.append((at, row, line))
    return tuple(found)


def _heading(units: Sequence[_Unit]) -> tuple[str, ...]:
    """Return the path that all of a chunk stands under; a heading with its section's text counts with that text."""
    paths: list[tuple[str, ...]] = []
    for unit in units:
        path = unit.segment.heading
        if not any(known[: len(path)] == path for known in paths):
            paths = [known for known in paths if path[: len(known)] != known] + [path]
    common = paths[0] if paths else ()
    for path in paths[1:]:
        length = next(
            (at for at, (a, b) in enumerate(zip(common, path, strict=False)) if a != b), min(len(common), len(path))
        )
        common = common[:length]
    return common
