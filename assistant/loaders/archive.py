"""Zip containers (docx, xlsx, pptx, odt, epub): opened with their declared sizes checked first.

``zipfile`` never gives more bytes than an entry declares, so a check of what is declared bounds what is read.
"""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from lxml import etree

from assistant.errors import DamagedDocumentError, DocumentTooLargeError, EncryptedDocumentError

from .base import Source

MAX_UNPACKED = 2 << 30
_FREE = 64 << 20  # unpacked bytes that no ratio is asked of
_MAX_RATIO = 200  # XML rarely packs better than 50 to 1
_MAX_ENTRIES = 100_000


@contextmanager
def opened(source: Source) -> Iterator[zipfile.ZipFile]:
    """Open a container.

    Raises:
        DamagedDocumentError: It is not a zip file, or broken.
        DocumentTooLargeError: Unpacked it would be far larger than any real document (a zip bomb).
        EncryptedDocumentError: Its entries are encrypted.
    """
    try:
        with zipfile.ZipFile(source.path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            packed = sum(entry.compress_size for entry in entries)
            size = source.path.stat().st_size
            if (
                unpacked > MAX_UNPACKED
                or (unpacked > _FREE and unpacked > _MAX_RATIO * size)
                or packed > 2 * size + 4096
            ):
                raise DocumentTooLargeError(
                    source.name, f"{size} bytes that unpack to {unpacked}: it looks like a zip bomb"
                )
            if len(entries) > _MAX_ENTRIES:
                raise DocumentTooLargeError(source.name, f"it packs {len(entries)} files")
            if entries and any(entry.flag_bits & 1 for entry in entries):
                raise EncryptedDocumentError(source.name, "it is encrypted", "save it without encryption")
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zipfile.LargeZipFile, ValueError) as exc:
        if isinstance(exc, UnicodeError):
            raise
        raise DamagedDocumentError(source.name, "its container (zip) is broken", "open and save it anew") from exc


def member(archive: zipfile.ZipFile, source: Source, name: str) -> IO[bytes]:
    """Open an entry that must be there.

    Raises:
        DamagedDocumentError: It is not.
    """
    try:
        return archive.open(name)
    except KeyError as exc:
        raise DamagedDocumentError(source.name, f"it lacks its part {name}", "open and save it anew") from exc


def tree(archive: zipfile.ZipFile, name: str) -> etree._Element | None:
    """Parse an entry as XML, or return None where it is missing or no XML."""
    try:
        with archive.open(name) as stream:
            return etree.parse(stream, parser()).getroot()
    except (KeyError, etree.XMLSyntaxError):
        return None


def parser() -> etree.XMLParser:
    """Return an XML parser that loads nothing and expands nothing, and reads on after an error."""
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True, recover=True)


def relations(archive: zipfile.ZipFile, part: str) -> dict[str, tuple[str, str]]:
    """Return the relations of an Office part: id to (kind, name of the entry it points to)."""
    folder, name = posixpath.split(part)
    root = tree(archive, f"{folder}/_rels/{name}.rels" if folder else f"_rels/{name}.rels")
    found = {}
    for node in root if root is not None else ():
        if node.get("TargetMode") == "External" or not node.get("Target"):
            continue
        target = node.get("Target")
        path = target.lstrip("/") if target.startswith("/") else posixpath.normpath(posixpath.join(folder, target))
        found[node.get("Id", "")] = (node.get("Type", "").rsplit("/", 1)[-1], path)
    return found


def local(node: etree._Element) -> str:
    """Return an element's name without its namespace; strict and transitional files differ in that alone."""
    tag = node.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def attribute(node: etree._Element, name: str) -> str:
    """Return an attribute whatever its namespace, or an empty string."""
    for key, value in node.attrib.items():
        if key.rsplit("}", 1)[-1] == name:
            return str(value)
    return ""
