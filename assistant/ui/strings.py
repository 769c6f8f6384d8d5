"""The words on the page: one file a language in ``static/strings/``, English being the one to translate from.

What the rest of the program says (errors, why a file was refused) is English where it arises; ``static/messages/`` has
those sentences in other languages, under the English ones, with ``{}`` around what varies in them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "static" / "strings"
MESSAGES = Path(__file__).parent / "static" / "messages"
DEFAULT = "en"


class Strings:
    """All languages there are, read once."""

    def __init__(self, folder: Path = FOLDER, messages: Path = MESSAGES) -> None:
        self._languages = _tables(folder)
        self._messages = _tables(messages)

    @property
    def languages(self) -> dict[str, str]:
        """Code to the language's own name, of each."""
        return {code: words["language.name"] for code, words in self._languages.items()}

    def choose(self, wanted: str, accept_language: str) -> str:
        """Return the language to use: the *wanted* one, else the best of ``Accept-Language``, else English."""
        for code in [wanted, *_preferred(accept_language)]:
            if code in self._languages:
                return code
        return DEFAULT

    def words(self, language: str) -> dict[str, str]:
        """Return the words of a language, English standing in for what it lacks."""
        return {**self._languages[DEFAULT], **self._languages[language]}

    def messages(self, language: str) -> dict[str, str]:
        """Return what the program says, English to a language; empty for English."""
        return self._messages.get(language, {})


def _tables(folder: Path) -> dict[str, dict[str, str]]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _preferred(header: str) -> list[str]:
    """Return the primary language tags of an ``Accept-Language`` header, best first (RFC 9110, 12.5.4)."""
    found = []
    for part in header.split(","):
        match = re.fullmatch(r"\s*([A-Za-z]{1,8})(?:-[\w-]*)?\s*(?:;\s*q=([01](?:\.\d{0,3})?))?\s*", part)
        if match:
            found.append((float(match[2] or 1), match[1].lower()))
    return [code for weight, code in sorted(found, key=lambda item: -item[0]) if weight > 0]
