"""Which loader reads which file: by its content where that shows, by its suffix otherwise.

Loader modules are imported when first needed, so that the child process holds no library it does not use.
"""

from __future__ import annotations

import importlib
import mmap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import (
    DamagedDocumentError,
    EmptyDocumentError,
    UnsupportedFormatError,
)
from assistant.records import Segment

from .base import Source


@dataclass(frozen=True, slots=True)
class Format:
    """One format: what people call it, and the module and function of this package that load it."""

    name: str
    module: str
    function: str = "load"
    binary: bool = False


_TEXT = Format("plain text", "text")
_MARKDOWN = Format("Markdown", "text", "load_markdown")
_HTML = Format("HTML", "html")
_XML = Format("XML", "xml")
_JSON = Format("JSON", "jsonfile")
_JSON_LINES = Format("JSON Lines", "jsonfile", "load_lines")
_PDF = Format("PDF", "pdf", binary=True)
_DOCX = Format("Word", "docx", binary=True)
_PPTX = Format("PowerPoint", "pptx", binary=True)
_XLSX = Format("Excel", "sheets", "load_xlsx", binary=True)
_SHEETS = Format("spreadsheet", "sheets", "load_other", binary=True)
_ODF = Format("OpenDocument", "odf", binary=True)
_EPUB = Format("EPUB", "epub", binary=True)
_RTF = Format("RTF", "rtf")
_DOC = Format("Word 97-2003", "legacy", binary=True)
_PPT = Format("PowerPoint 97-2003", "legacy", binary=True)
_MAIL = Format("mail", "mail")
_LOCKED = Format("locked Office", "locked", binary=True)

SUPPORTED: dict[str, Format] = {
    ".txt": _TEXT, ".text": _TEXT, ".log": _TEXT, ".vtt": _TEXT, ".srt": _TEXT, ".yaml": _TEXT, ".yml": _TEXT,
    ".toml": _TEXT, ".ini": _TEXT, ".cfg": _TEXT, ".conf": _TEXT, ".adoc": _TEXT,
    ".md": _MARKDOWN, ".markdown": _MARKDOWN, ".mdx": _MARKDOWN, ".qmd": _MARKDOWN,
    ".rst": Format("reStructuredText", "text", "load_rst"),
    ".org": Format("Org", "text", "load_org"),
    ".tex": Format("TeX", "text", "load_tex"),
    ".html": _HTML, ".htm": _HTML, ".xhtml": _HTML, ".mht": _MAIL, ".mhtml": _MAIL,
    ".xml": _XML, ".svg": _XML, ".nxml": _XML,
    ".json": _JSON, ".geojson": _JSON, ".jsonl": _JSON_LINES, ".ndjson": _JSON_LINES,
    ".ipynb": Format("Jupyter notebook", "notebook"),
    ".csv": Format("CSV", "csvfile"), ".tsv": Format("TSV", "csvfile"), ".tab": Format("TSV", "csvfile"),
    ".pdf": _PDF,
    ".docx": _DOCX, ".docm": _DOCX, ".dotx": _DOCX,
    ".pptx": _PPTX, ".pptm": _PPTX, ".ppsx": _PPTX, ".potx": _PPTX,
    ".xlsx": _XLSX, ".xlsm": _XLSX, ".xltx": _XLSX, ".xls": _SHEETS, ".xlsb": _SHEETS, ".ods": _SHEETS,
    ".odt": _ODF, ".ott": _ODF, ".odp": _ODF, ".fodt": _ODF,
    ".rtf": _RTF,
    ".doc": _DOC, ".dot": _DOC, ".ppt": _PPT, ".pps": _PPT,
    ".eml": _MAIL,
    ".epub": _EPUB,
}  # fmt: skip
"""Suffix to format."""

_FOREIGN = (
    (b"\x89PNG", "an image"), (b"\xff\xd8\xff", "an image"), (b"GIF8", "an image"), (b"II*\0", "an image"),
    (b"MM\0*", "an image"), (b"BM", "an image"), (b"\x7fELF", "a program"), (b"MZ", "a program"),
    (b"\x1f\x8b", "a gzip archive"), (b"7z\xbc\xaf", "a 7-Zip archive"), (b"Rar!", "a RAR archive"),
    (b"BZh", "a bzip2 archive"), (b"\xfd7zXZ", "an xz archive"), (b"SQLite format 3", "a database"),
    (b"ID3", "audio"), (b"OggS", "audio"), (b"RIFF", "audio or video"), (b"\x1aE\xdf\xa3", "video"),
)  # fmt: skip
_REMEDY = "convert it to PDF, .docx or plain text"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def choose(source: Source) -> Format:
    """Find the format of a file.

    Raises:
        EmptyDocumentError: It has no bytes.
        UnsupportedFormatError: No loader reads it.
        DamagedDocumentError: It is not what its name says.
    """
    with source.path.open("rb") as stream:
        head = stream.read(4096)
    suffix = source.path.suffix.lower()
    if not head:
        raise EmptyDocumentError(source.name, "the file is empty")
    if b"%PDF-" in head[:1024]:
        return _PDF
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped(source, suffix)
    if head.startswith(_OLE):
        return _compound(source)
    if head.startswith(b"{\\rtf"):
        return _RTF
    known = SUPPORTED.get(suffix)
    if known is None or known.binary:
        for magic, what in _FOREIGN:
            if head.startswith(magic) and (len(magic) > 2 or b"\0" in head[:64]):
                remedy = "run text recognition (OCR) on it and add the result" if what == "an image" else _REMEDY
                raise UnsupportedFormatError(source.name, f"it is {what}, not a document", remedy)
    if known is not None and not known.binary:
        return known
    return _by_text(source, head, suffix, known)


def _by_text(source: Source, head: bytes, suffix: str, known: Format | None) -> Format:
    """Judge a file whose suffix says nothing or does not hold."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return _HTML
    if start.startswith(b"<?xml"):
        return _HTML if b"<html" in start else _XML
    if start.startswith((b"mime-version:", b"received:", b"return-path:")):
        return _MAIL
    if known is None and not suffix:
        return _TEXT
    if known is None:
        raise UnsupportedFormatError(source.name, f"no loader reads {suffix} files", _REMEDY)
    if known is _DOC and b"\0" not in head:
        return _TEXT  # Word opens such files too
    if known is _PDF:
        raise DamagedDocumentError(source.name, "it is not a PDF, whatever its name says", "download or export it anew")
    raise DamagedDocumentError(source.name, f"it is not a {known.name} file, whatever its name says",
                               "open and save it anew")  # fmt: skip


def _zipped(source: Source, suffix: str) -> Format:
    try:
        with zipfile.ZipFile(source.path) as archive:
            names = set(archive.namelist())
            kind = archive.read("mimetype")[:100].decode("ascii", "replace").strip() if "mimetype" in names else ""
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as exc:
        raise DamagedDocumentError(source.name, "its container (zip) is broken", "open and save it anew") from exc
    if kind == "application/epub+zip":
        return _EPUB
    if "opendocument" in kind:
        return _SHEETS if "spreadsheet" in kind else _ODF
    for folder, found in (("word/", _DOCX), ("ppt/", _PPTX), ("xl/", _XLSX)):
        if any(name.startswith(folder) for name in names):
            return _SHEETS if "xl/workbook.bin" in names else found
    known = SUPPORTED.get(suffix)
    if known in (_DOCX, _PPTX, _XLSX, _ODF, _EPUB, _SHEETS) and "[Content_Types].xml" in names:
        return known  # unusual folder names are allowed
    if known in (_ODF, _SHEETS) and "content.xml" in names:
        return known
    if known is _EPUB and "META-INF/container.xml" in names:
        return known
    if known is not None:
        raise DamagedDocumentError(
            source.name, f"it is a zip archive, not a {known.name} file", "open and save it anew"
        )
    raise UnsupportedFormatError(source.name, "it is a zip archive", "unpack it and add the folder")


def _compound(source: Source) -> Format:
    """Tell Office's old compound files apart by the names of their streams."""
    with source.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def holds(name: str) -> bool:
            return data.find(name.encode("utf-16-le")) >= 0

        if holds("EncryptedPackage"):
            return _LOCKED
        # A Word document may embed a sheet and a slide both; its own suffix breaks the tie.
        found = [kind for name, kind in (("WordDocument", _DOC), ("PowerPoint Document", _PPT), ("Workbook", _SHEETS),
                                         ("Book", _SHEETS)) if holds(name)]  # fmt: skip
    by_suffix = SUPPORTED.get(source.path.suffix.lower())
    if by_suffix in found:
        return by_suffix
    if found:
        return found[0]
    if source.path.suffix.lower() == ".msg":
        raise UnsupportedFormatError(source.name, "it is an Outlook message", "save it as .eml")
    raise UnsupportedFormatError(source.name, "it is an old Office file of an unknown kind", _REMEDY)


def segments(source: Source) -> Iterator[Segment]:
    """Load a file here and now, in this process and without limits; the child process calls this.

    Raises:
        DocumentError: It can't be read.
    """
    found = choose(source)
    module = importlib.import_module(f"{__package__}.{found.module}")
    empty = True
    for segment in getattr(module, found.function)(source):
        empty = False
        yield segment
    if empty:
        raise EmptyDocumentError(source.name, "it holds no text")


def is_supported(path: Path) -> bool:
    """Tell by its name whether a file is of a format that some loader reads."""
    return path.suffix.lower() in SUPPORTED
