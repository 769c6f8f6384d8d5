"""Text files of unknown encoding, read in pieces.

The whole file is checked against UTF-8 (a stray byte at its far end must not turn a book into mojibake); only what
fails is guessed from a sample. Knows nothing about what the text means.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

from assistant.errors import EmptyDocumentError, UnsupportedFormatError

from .base import Source

_PIECE = 1 << 16
_SAMPLE = 1 << 15
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_ALIASES = {
    "iso-8859-1": "cp1252",  # what the web means by it (WHATWG Encoding standard)
    "latin-1": "cp1252",
    "latin1": "cp1252",
    "ascii": "cp1252",
    "us-ascii": "cp1252",
    "iso-8859-8-i": "iso-8859-8",
    "x-sjis": "shift_jis",
    "gb2312": "gb18030",
}
_WESTERN = frozenset(
    "éèêëàâäáãåæçñíìîïóòôöõøœúùûüýÿßÉÈÊËÀÂÄÁÃÅÆÇÑÍÌÎÏÓÒÔÖÕØŒÚÙÛÜÝßðþŠšŽž’‘“”„«»‹›–—…•·°€£§©®™ª\xa0¡¿²³½´×µ¢¥¼¾±†"
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """A codec's name and how to treat bytes it can't decode."""

    name: str
    errors: str = "strict"


def detect(source: Source, *, declared: bool = False) -> Encoding:
    """Find the encoding of a text file.

    Args:
        source: The file.
        declared: Whether to believe a ``charset=`` or ``encoding=`` near its start (HTML, XML).

    Raises:
        EmptyDocumentError: It has no bytes.
        UnsupportedFormatError: It is not text.
    """
    with source.path.open("rb") as stream:
        head = stream.read(_SAMPLE)
    if not head:
        raise EmptyDocumentError(source.name, "the file is empty")
    for bom, name in _BOMS:
        if head.startswith(bom):
            return Encoding(name, "replace")
    wide = _without_bom(head)
    if wide:
        return Encoding(wide, "replace")
    if _is_binary(head):
        raise UnsupportedFormatError(source.name, "it is a binary file, not text",
                                     "convert it to PDF, .docx or plain text")  # fmt: skip
    if declared:
        found = _DECLARED.search(head[:2048])
        name = _known(found[1].decode("ascii")) if found else ""
        if name and not name.startswith(("utf-16", "utf-32")) and _decodes(head, name):
            return Encoding(name, "replace")
    good, bad, sample = _utf8_errors(source)
    if not bad or good > 10 * bad:
        return Encoding("utf-8", "replace" if bad else "strict")
    return Encoding(_guess(sample), "replace")


def read(source: Source, *, declared: bool = False) -> Iterator[str]:
    """Yield the text of a file in pieces; all line ends are newlines.

    Raises:
        EmptyDocumentError: It has no bytes.
        UnsupportedFormatError: It is not text.
    """
    encoding = detect(source, declared=declared)
    with source.path.open("r", encoding=encoding.name, errors=encoding.errors) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def decode(data: bytes, *, declared: str = "") -> str:
    """Decode a few bytes whose encoding may have been declared (a mail part, a page of a book)."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            return data.decode(name, "replace")
    found = _known(declared) if declared else ""
    for name in (found, "utf-8"):
        if name and _decodes(data, name):
            return data.decode(name)
    return data.decode(_guess(data[:_SAMPLE]), "replace")


def lines(source: Source, *, limit: int = _PIECE) -> Iterator[tuple[int, str, bool]]:
    """Yield ``(number, text, complete)`` for each line; one longer than *limit* comes in several pieces.

    Pieces of a long line carry its number; only the last of them is *complete*.
    """
    number, rest = 1, ""
    for piece in read(source):
        rest += piece
        *whole, rest = rest.split("\n")
        for text in whole:
            yield number, text, True
            number += 1
        while len(rest) > limit:
            cut = rest.rfind(" ", limit // 2, limit) + 1 or limit
            yield number, rest[:cut], False
            rest = rest[cut:]
    if rest:
        yield number, rest, True


def _without_bom(head: bytes) -> str:
    """Name the wide encoding that the pattern of NUL bytes shows, if any."""
    size = len(head) // 4 * 4
    if size < 4 or b"\0" not in head:
        return ""
    share = [head[place:size:4].count(0) / (size // 4) for place in range(4)]
    if min(share[1:]) > 0.9 and share[0] < 0.1:
        return "utf-32-le"
    if min(share[:3]) > 0.9 and share[3] < 0.1:
        return "utf-32-be"
    even, odd = (share[0] + share[2]) / 2, (share[1] + share[3]) / 2
    if odd > 0.4 and even < 0.05:
        return "utf-16-le"
    if even > 0.4 and odd < 0.05:
        return "utf-16-be"
    return ""


def _is_binary(head: bytes) -> bool:
    odd = sum(head.count(byte) for byte in (*range(0x07), *range(0x0E, 0x1A), *range(0x1C, 0x20)))
    return odd > 0.02 * len(head)


def _utf8_errors(source: Source) -> tuple[int, int, bytes]:
    """Count good and bad characters beyond ASCII, and return a sample around the bad ones."""
    good = bad = 0
    sample = b""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with source.path.open("rb") as stream:
        while piece := stream.read(_PIECE * 4):
            if piece.isascii() and not decoder.getstate()[0]:
                continue
            text = decoder.decode(piece)
            here = text.count("\ufffd")
            bad += here
            good += sum(len(run) for run in re.findall(r"[^\x00-\x7f\ufffd]+", text))
            if here and len(sample) < _SAMPLE:
                sample += b"\n".join(line for line in piece.split(b"\n") if not line.isascii())[:_SAMPLE]
    bad += decoder.decode(b"", True).count("\ufffd")
    return good, bad, sample


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes  # only files that are not UTF-8 pay for it

    high = sum(byte > 0x7F for byte in sample)
    if high < 8 and _decodes(sample, "cp1252"):
        return "cp1252"  # too little to tell; the most common by far
    for name in ("cp932", "euc_jp"):
        if _is_japanese(sample, name):
            return name
    if high < 0.2 * len(sample) and _is_western(sample):
        return "cp1252"
    best = from_bytes(sample).best()
    return best.encoding if best is not None else "cp1252"


def _is_japanese(sample: bytes, name: str) -> bool:
    """Tell whether a reading gives what all Japanese prose has: much hiragana and katakana of full width."""
    text = _whole(sample, name)
    wide = sum(character > "\x7f" for character in text)
    kana = sum("\u3041" <= character <= "\u30ff" for character in text)
    return wide > 0 and kana > 0.25 * wide


def _is_western(sample: bytes) -> bool:
    """Tell whether Windows' Western code page gives letters and quotes that Western languages write."""
    text = _whole(sample, "cp1252")
    high = [character for character in text if character > "\x7f"]
    common = sum(character in _WESTERN for character in high)
    inside = len(re.findall(r"[a-z][\xa1-\xbf\xd7\xf7][a-z]", text))  # a sign in a word: a letter of another page
    czech = "ì" in text and "ø" in text  # no Western language has both; in Windows' Central page they are ě and ř
    return bool(high) and common > 0.95 * len(high) and inside <= 0.02 * len(high) and not czech


def _whole(sample: bytes, name: str) -> str:
    """Decode a sample that may end within a character; nothing if it can't be of that encoding."""
    try:
        return codecs.getincrementaldecoder(name)().decode(sample)
    except UnicodeDecodeError:
        return ""


def _decodes(data: bytes, name: str) -> bool:
    try:
        codecs.getincrementaldecoder(name)().decode(data)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _known(name: str) -> str:
    lowered = name.strip().lower()
    lowered = _ALIASES.get(lowered, lowered)
    try:
        info = codecs.lookup(lowered)
    except LookupError:
        return ""
    return info.name if getattr(info, "_is_text_encoding", True) else ""
