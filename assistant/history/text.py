"""What text may be stored, and under which names. Knows nothing about SQL."""

from __future__ import annotations

import re
import unicodedata
import zlib

from assistant.errors import SessionNameError

MAX_NAME_CHARS = 200
"""Longest session id or user name; names are keys and stand in every turn's row."""

TITLE_CHARS = 60
_LONGEST_TITLE = 200


def storable(text: str) -> str:
    """Return *text* as SQLite can hold it: UTF-8.

    Everything that UTF-8 can say is kept to the byte, control characters and NUL included. The two halves of a
    surrogate pair become the character they mean; a lone surrogate, which is no character, becomes U+FFFD.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def checked_name(name: str, what: str = "session name") -> str:
    """Return *name* as it is stored: trimmed, and in Unicode's composed form.

    Slashes, quotes and emoji are fine: a name is a key in the database, never a file name.

    Raises:
        SessionNameError: Empty, longer than `MAX_NAME_CHARS`, or with characters that nobody can type or see.
    """
    text = unicodedata.normalize("NFC", name).strip()
    if not text:
        raise SessionNameError(f"A {what} can't be empty; give it at least one letter.")
    if len(text) > MAX_NAME_CHARS:
        raise SessionNameError(
            f"A {what} has at most {MAX_NAME_CHARS} characters, this one has {len(text)} ({text[:20]}…); shorten it."
        )
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise SessionNameError(
                f"A {what} can't hold the control character U+{ord(char):04X} (in {text[:20]!r}); leave it out."
            )
    return text


def title_from(question: str) -> str:
    """Return a title for a session: its first question, on one line, cut at a word."""
    line = " ".join(_printable(question).split())
    if len(line) <= TITLE_CHARS:
        return line or "Untitled"
    cut = line[:TITLE_CHARS].rsplit(" ", 1)[0]
    return cut.rstrip(" ,;:.") + "…"


def clean_title(title: str) -> str:
    """Return a title given by a person, on one line and not endless."""
    return " ".join(_printable(title).split())[:_LONGEST_TITLE]


def checksum(head: tuple[object, ...], answer: str, details: str) -> int:
    """Return the CRC-32 that a turn's row carries, to notice text that changed on disk.

    The order lets a growing answer extend it: see `extend`.
    """
    crc = zlib.crc32(repr(head).encode("utf-8", "backslashreplace"))
    return zlib.crc32(details.encode(), zlib.crc32(answer.encode(), crc))


def extend(crc: int, more: str) -> int:
    """Return the checksum after *more* was added to an answer that has no details yet."""
    return zlib.crc32(more.encode(), crc)


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", storable(text))
