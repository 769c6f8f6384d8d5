"""Words of a text as searches compare them: lower case, without diacritics, stemmed, the empty ones apart.

Knows English function words only; in other languages nothing is dropped, and BM25's own weights do that work. Numbers
are words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_WORD = re.compile(r"\w+")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOPWORDS = _set(
    "a about also am an and any are as at be been being both but by can could did do does doing don each either few "
    "for from further get give got had has have having he hello her here hers hi him his how i if in into is it its "
    "just know let make many may me might more most much must my need neither no nor not of ok okay on once only or "
    "other our ours out over own please quite s same shall she should so some such t tell than thank thanks that the "
    "their theirs them then there these they this those to too up us very want was we were what when where whether "
    "which while who whom whose why will with would yes yet you your yours"
)


def words(text: str) -> list[str]:
    """Return the words of *text* in order, lower case and without diacritics; nothing is dropped."""
    plain = unicodedata.normalize("NFKD", text.lower())
    if not plain.isascii():
        plain = "".join(char for char in plain if not unicodedata.combining(char))
    return _WORD.findall(plain)


def content_words(text: str) -> list[str]:
    """Return the words that carry meaning, each once, in order; all words where none does."""
    found = words(text)
    kept = [word for word in found if word not in STOPWORDS and len(word) > (not word.isdigit())]
    return list(dict.fromkeys(kept or found))


def stems(text: str) -> list[str]:
    """Return the stems of the content words, each once, in order."""
    return list(dict.fromkeys(stem(word) for word in content_words(text)))


@lru_cache(maxsize=10_000)  # 130 bytes each
def stem(word: str) -> str:
    """Cut the endings of plurals, tenses and adverbs off an English word.

    The first steps of Porter's algorithm (1980) in a coarse form: it is used where two words of nearby texts are
    compared, not to look anything up.
    """
    if len(word) < 4 or not word.isalpha():
        return word
    for ending, instead in (("sses", "ss"), ("ies", "y"), ("ss", "ss"), ("us", "us"), ("s", "")):
        if word.endswith(ending):
            word = word[: len(word) - len(ending)] + instead
            break
    for ending in ("ing", "edly", "ed", "ly"):
        base = word[: -len(ending)]
        if word.endswith(ending) and len(base) > 2 and any(vowel in base for vowel in "aeiouy"):
            word = base
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 3 and word.endswith("y") else word
