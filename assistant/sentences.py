"""Where sentences begin and end in a text, as spans of it.

Knows typography only: no model, no tokenizer, no language detection. A sentence is a slice of the text as it stands,
so what is quoted can be found again. Rows of tables and items of lists count as sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

_MAX_ROW = 400  # characters: a table row longer than this is split like prose
_MAX_WRAP = 160  # characters: nobody wraps lines wider than this, so such a line ends where its author meant it to

_PARAGRAPH = re.compile(r"\n[^\S\n]*(?:\n\s*)|[\f\v\x1c-\x1e\u2029]\s*")
_BULLET = re.compile(r"[^\S\n]*(?:[-*+•◦▪‣·●○■□–—]|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,4})[.)]|\#{1,6}|>)[^\S\n]")
_LIST_NUMBER = re.compile(r"\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,4})(?:\.\d{1,3})*\.")
_CLOSERS = "\"'”’»)\\]}」』）】〉》］"
_OPENERS = "\"'“‘„«([{¿¡「『（【〈《［*_`"
# The lookbehind keeps a run of dots (a table of contents) from being tried once from each of its dots.
_END = re.compile(
    rf"(?<![.!?…])[.!?…]++[{_CLOSERS}]*+(?=\s)"  # what needs a space after it
    rf"|[。！？｡．][。！？｡．]*+[{_CLOSERS}]*+"  # full-width: the next sentence may follow at once
    r"|[।॥۔؟։።]+(?=\s)"
)
_WORD_BEFORE = re.compile(r"[^\s" + re.escape("\"'“‘„«([{/—–") + r"]*\Z")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never end a sentence: something always follows.
_TITLES = _words(
    "mr mrs ms mx dr prof rev hon st mt ft gen col maj capt lt cmdr sgt gov sen rep pres supt fig figs eq eqs sec secs "
    "ch chap art arts vol vols ed eds trans no nos nr pp p para paras cf vs v viz ca approx e.g i.e eg ie esp resp "
    "incl excl dept univ assn bros op cit al ref refs tab tel ext bzw z.b d.h u.a s.a sog ggf vgl usw abs hr fr "
    "av bd blvd rd hwy mme mlle sr.a dra sra"
)
# May end a sentence: they do when a word follows that often begins one.
_MAYBE = _words(
    "etc inc ltd co corp plc llc jr sr esq ph.d m.d b.a m.a b.sc m.sc a.m p.m u.s u.k u.n e.u u.s.a d.c a.d b.c c.e "
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun min max hrs hr mins "
    "ave dist gmbh est ibid"
)
_STARTERS = _words(
    "the a an this that these those it its he she they we i you his her their our my your there here in on at by for "
    "from with without to of as if when while after before since until because although though however but and or so "
    "then thus therefore hence also no not all any some each every many most both either neither what who which where "
    "why how do does did is are was were can could may might must shall should will would please note see use such one "
    "two three during under over between according despite once first second finally next yes"
)


def spans(text: str) -> list[Span]:
    """Return the sentences of *text* as ``(start, end)`` offsets, in order.

    Every character that is not whitespace lies in exactly one span; spans begin and end with such a character.
    """
    found: list[Span] = []
    position = 0
    for gap in _PARAGRAPH.finditer(text):
        found.extend(_paragraph(text, position, gap.start()))
        position = gap.end()
    found.extend(_paragraph(text, position, len(text)))
    return found


def split(text: str) -> list[str]:
    """Return the sentences of *text* as slices of it."""
    return [text[start:end] for start, end in spans(text)]


def _paragraph(text: str, start: int, end: int) -> Iterator[Span]:
    """Split a paragraph into what its author put on lines of their own, then each of those into sentences."""
    for first, last in _units(text, start, end):
        if last - first <= _MAX_ROW and "\n" not in text[first:last] and " | " in text[first:last]:
            yield from trimmed(text, first, last)
        else:
            yield from _sentences(text, first, last)


def _units(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield runs of lines that belong together: a hard-wrapped sentence goes on in the next line, an item does not.

    A line break was meant if the first word of the next line would have fitted well within the paragraph's width.
    """
    if "\n" not in text[start:end]:
        yield start, end
        return
    lines = [(found.start(), found.end()) for found in re.compile(r"[^\n]+").finditer(text, start, end)]
    width = max((last - first for first, last in lines), default=0)
    begin: int | None = None
    for number, (first, last) in enumerate(lines):
        if begin is None:
            begin = first
        if number + 1 == len(lines) or _meant(text, (first, last), lines[number + 1], width):
            yield begin, last
            begin = None


def _meant(text: str, line: Span, following: Span, width: int) -> bool:
    """Tell whether the break between two lines ends something."""
    this, after = text[slice(*line)].rstrip(), text[slice(*following)]
    if _BULLET.match(after) or " | " in this or " | " in after or len(this) > _MAX_WRAP:
        return True
    word = after.split(None, 1)[0] if after.strip() else ""
    if not word or word.lstrip(_OPENERS)[:1].islower() or this.endswith(("-", ",", ";")):
        return False
    return len(this) + 1 + len(word) <= 0.8 * width or width < 30


def _sentences(text: str, start: int, end: int) -> Iterator[Span]:
    begin = start
    for mark in _END.finditer(text, start, end):
        if mark.end() < end and not _ends(text, begin, mark, end):
            continue
        yield from trimmed(text, begin, mark.end())
        begin = mark.end()
    yield from trimmed(text, begin, end)


def _ends(text: str, begin: int, mark: re.Match[str], end: int) -> bool:
    """Tell whether a punctuation mark ends the sentence that starts at *begin*."""
    ahead = text[mark.end() : min(end, mark.end() + 80)]
    words = ahead.split(None, 1)
    if not words:
        return False
    following = words[0].lstrip(_OPENERS)
    if following[:1].islower():
        return False  # "Stop!" he said; approx. three
    if mark[0][0] != "." or mark[0][:2] == "..":
        return True
    before = _WORD_BEFORE.search(text, max(begin, mark.start() - 40), mark.start())
    word = before[0] if before else ""
    if not text[begin : mark.start() - len(word)].strip() and _LIST_NUMBER.fullmatch(word + "."):
        return False  # "1. Unpack the box"
    lowered = word.lower()
    if lowered in _TITLES:
        # "No." is an answer as well as a number's name.
        return lowered in ("no", "p", "v", "ch", "art", "fig") and not following[:1].isdigit() and len(following) > 1 \
            and following.lower().rstrip(",.;:") in _STARTERS  # fmt: skip
    initial = len(word) == 1 and word.isalpha() and word.isupper()
    dotted = re.fullmatch(r"(?:[^\W\d_]\.)+[^\W\d_]", word) is not None
    if initial or dotted or lowered in _MAYBE:
        return re.split(r"[^\w]", following, maxsplit=1)[0].lower() in _STARTERS and following != "I."
    return True


def trimmed(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the span without the whitespace at its ends, unless nothing else is in it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end
