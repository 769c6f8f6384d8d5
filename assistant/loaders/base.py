"""What all loaders share: the file they are given, clean text, and rows that keep their header.

Knows no format. Everything in this package but ``runner`` runs in the child process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from assistant.records import Segment

MAX_SEGMENT = 8_000  # characters: longer paragraphs go out in pieces, so that no reader has to hold a whole file

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff\u00ad\ufeff\u200b]")
_BLANKS = re.compile(r"[^\S\n]+")
_NUMBER = re.compile(r"[-+(]?[$€£¥]?\s?\d[\d.,:/\s\-]*(?:%|[a-zA-Z]{1,3})?\)?")


@dataclass(frozen=True, slots=True)
class Source:
    """One file to load.

    Attributes:
        path: Where it is.
        name: How the user named it, for errors.
        passwords: To try on encrypted files.
        depth: How many files this one is inside of (an attachment of a mail of an archive).
    """

    path: Path
    name: str
    passwords: tuple[str, ...] = ()
    depth: int = 0


def clean(text: str) -> str:
    """Drop control characters, soft hyphens and lone surrogates; make all line ends newlines."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text)


def squeeze(text: str) -> str:
    """Return *text* cleaned, on lines without leading, trailing or doubled blanks."""
    lines = (_BLANKS.sub(" ", line).strip() for line in clean(text).split("\n"))
    return "\n".join(line for line in lines if line)


def one_line(text: str) -> str:
    """Return *text* cleaned, on one line."""
    return " ".join(clean(text).split())


def pieces(text: str, limit: int = MAX_SEGMENT) -> Iterator[tuple[str, str]]:
    """Cut *text* into ``(glue, piece)`` no longer than *limit*, at line ends or blanks where there are any.

    Glues and pieces joined are *text* again, without the whitespace at its ends; the first glue is empty.
    """
    position, end, glue_from = 0, len(text), -1
    while True:
        while position < end and text[position].isspace():
            position += 1
        if position >= end:
            return
        cut = min(end, position + limit)
        if cut < end:
            soft = max(text.rfind("\n", position + limit // 2, cut), text.rfind(" ", position + limit // 2, cut))
            cut = soft if soft > position else cut
        stop = cut
        while stop > position and text[stop - 1].isspace():
            stop -= 1
        yield ("" if glue_from < 0 else text[glue_from:position]), text[position:stop]
        position = glue_from = stop


@dataclass
class Outline:
    """The headings above the current place."""

    levels: list[tuple[int, str]] = field(default_factory=list)

    def enter(self, level: int, title: str) -> tuple[str, ...]:
        """Begin a section of *level* (1 is the outermost) and return its path."""
        while self.levels and self.levels[-1][0] >= level:
            self.levels.pop()
        self.levels.append((level, one_line(title)[:200]))
        return self.path

    @property
    def path(self) -> tuple[str, ...]:
        """Titles from the outermost to the current one."""
        return tuple(title for _, title in self.levels)


class Table:
    """Turns the rows of one table into lines that keep their header: ``Name: Acme | Price: 3``.

    Args:
        convention: Whether a first row of words is taken as the header even when nothing marks it as one, as is usual
            in CSV files and sheets. Elsewhere it is one when numbers follow below it.
    """

    def __init__(self, *, convention: bool = False) -> None:
        self._convention = convention
        self._header: list[str] | None = None
        self._first: tuple[int, list[str]] | None = None
        self._seen = 0  # rows with text
        self._read = 0  # empty ones too
        self._header_at = 1

    def add(self, cells: Sequence[str], *, number: int | None = None, header: bool = False) -> list[tuple[int, str]]:
        """Take the next row and return the lines that are ready, each with its row number.

        Rows are numbered from 1 as they come, the header and empty ones too, unless *number* says otherwise.
        """
        row = [one_line(cell) for cell in cells]
        self._read += 1
        if not any(row):
            return []
        self._seen += 1
        place = self._read if number is None else number
        if header:
            ready = self._flush()
            if self._header is None:
                self._header, self._header_at = row, place
                return ready
            self._header = [
                f"{above} {below}".strip() if above != below else above
                for above, below in zip(_padded(self._header, len(row)), _padded(row, len(self._header)), strict=False)
            ]
            return ready
        if self._header is None and self._seen == 1:
            self._first = (place, row)
            return []
        ready = []
        if self._first is not None:
            if is_header(self._first[1], row, convention=self._convention):
                self._header, self._first = self._first[1], None
            else:
                self._header = []
                ready = self._flush()
        return [*ready, (place, self._line(row))]

    def close(self) -> list[tuple[int, str]]:
        """Return what was held back: the only row, or a header without rows."""
        ready = self._flush()
        if not ready and self._header and self._seen == 1:
            ready = [(self._header_at, " | ".join(cell for cell in self._header if cell))]
        return ready

    def _flush(self) -> list[tuple[int, str]]:
        first, self._first = self._first, None
        return [(first[0], self._line(first[1]))] if first else []

    def _line(self, row: list[str]) -> str:
        names = _padded(self._header or [], len(row))
        if not self._header and len(row) == 2 and all(row) and len(row[0]) <= 60:
            return f"{row[0].rstrip(':')}: {row[1]}"
        return " | ".join(
            f"{name}: {cell}" if name and name != cell else cell for name, cell in zip(names, row, strict=False) if cell
        )


def is_header(first: Sequence[str], second: Sequence[str], *, convention: bool) -> bool:
    """Tell whether the *first* row of a table names the columns of the others."""
    named = [cell for cell in first if cell]
    if len(named) < 2 or len(set(named)) < len(named) or any(is_number(cell) or len(cell) > 80 for cell in named):
        return False
    if any(cell and is_number(below) for cell, below in zip(first, second, strict=False)):
        return True
    return convention or len(named) >= 3


def is_number(text: str) -> bool:
    """Tell whether a cell holds a number, an amount or a date rather than words."""
    return _NUMBER.fullmatch(text.strip()) is not None


def _padded(row: list[str], length: int) -> list[str]:
    return row + [""] * (length - len(row))


def text_segments(text: str, **facts: object) -> Iterator[Segment]:
    """Yield *text* as one segment, or as several when it is long."""
    for number, (glue, piece) in enumerate(pieces(text)):
        if number:
            facts["glue"] = glue
        yield Segment(piece, **facts)  # type: ignore[arg-type]


def row_segments(rows: Sequence[tuple[int, str]], *, begun: bool, **facts: object) -> Iterator[Segment]:
    """Yield table rows as segments on lines of their own; *begun* says that rows of the same table came before."""
    for number, text in rows:
        for index, (glue, piece) in enumerate(pieces(text)):
            if index:
                facts["glue"] = glue
            elif begun:
                facts["glue"] = "\n"
            else:
                facts.pop("glue", None)
            begun = True
            yield Segment(piece, row=number, kind="row", **facts)  # type: ignore[arg-type]
