"""The numbers that Word shows before paragraphs but does not store with them: ``2.``, ``3.1``, ``(b)``."""

from __future__ import annotations

import zipfile
from collections.abc import Callable

from lxml import etree

from .archive import attribute, local, tree

_BULLET = "-"
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"),
          (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip


class Numbering:
    """Counts the paragraphs of each list as Word does.

    Args:
        archive: The document.
        path: Its part that defines lists; empty for none.
    """

    def __init__(self, archive: zipfile.ZipFile, path: str) -> None:
        root = tree(archive, path) if path else None
        self._lists: dict[str, str] = {}  # list to its definition
        self._levels: dict[str, dict[int, tuple[str, str, int]]] = {}  # definition to level: format, pattern, start
        self._restarts: dict[tuple[str, int], int] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._used: set[str] = set()
        for node in root if root is not None else ():
            if local(node) == "abstractNum":
                self._levels[attribute(node, "abstractNumId")] = _levels(node)
            elif local(node) == "num":
                self._add(node)

    def _add(self, node: etree._Element) -> None:
        key = attribute(node, "numId")
        for child in node:
            if local(child) == "abstractNumId":
                self._lists[key] = attribute(child, "val")
            elif local(child) == "lvlOverride":
                start = next((attribute(below, "val") for below in child if local(below) == "startOverride"), "")
                level = attribute(child, "ilvl")
                if start.isdecimal() and level.isdecimal():
                    self._restarts[key, int(level)] = int(start)

    def next(self, key: str, level: int) -> str:
        """Return what stands before the next paragraph of a list, at a level from 0."""
        definition = self._lists.get(key, "")
        levels = self._levels.get(definition, {})
        if level not in levels:
            return "" if key == "0" else _BULLET
        kind, pattern, start = levels[level]
        if kind == "bullet":
            return _BULLET
        counts = self._counts.setdefault(definition, {})
        if key not in self._used:
            self._used.add(key)
            for (owner, at), value in self._restarts.items():
                if owner == key:
                    counts[at] = value - 1
        counts[level] = counts.get(level, start - 1) + 1
        for below in [other for other in counts if other > level]:
            del counts[below]
        if kind == "none":
            return ""
        text = pattern
        for other in range(9):
            if f"%{other + 1}" in text:
                form, _, first = levels.get(other, ("decimal", "", 1))
                text = text.replace(f"%{other + 1}", _write(counts.get(other, first), form))
        return text.strip()


def _levels(definition: etree._Element) -> dict[int, tuple[str, str, int]]:
    found = {}
    for node in definition:
        level = attribute(node, "ilvl")
        if local(node) != "lvl" or not level.isdecimal():
            continue
        facts = {local(child): attribute(child, "val") for child in node}
        start = facts.get("start", "1")
        found[int(level)] = (facts.get("numFmt", "decimal"), facts.get("lvlText", ""),
                             int(start) if start.isdecimal() else 1)  # fmt: skip
    return found


def _write(number: int, form: str) -> str:
    forms: dict[str, Callable[[int], str]] = {
        "lowerLetter": _letters, "upperLetter": lambda n: _letters(n).upper(),
        "lowerRoman": _roman, "upperRoman": lambda n: _roman(n).upper(), "decimalZero": lambda n: f"{n:02d}",
    }  # fmt: skip
    return forms.get(form, str)(number) if 0 < number < 4000 else str(number)


def _letters(number: int) -> str:
    return chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)


def _roman(number: int) -> str:
    text = ""
    for value, letters in _ROMAN:
        text += letters * (number // value)
        number %= value
    return text
