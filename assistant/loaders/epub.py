"""EPUB books: their chapters, in reading order, through the HTML loader."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import unquote

from assistant.errors import DamagedDocumentError, EmptyDocumentError, EncryptedDocumentError
from assistant.records import Segment

from . import html
from .archive import local, opened, tree
from .base import Source
from .decode import decode


def load(source: Source) -> Iterator[Segment]:
    """Load an EPUB.

    Raises:
        EmptyDocumentError: No chapter holds text.
        EncryptedDocumentError: It is protected.
        DamagedDocumentError: It lacks its table of contents.
    """
    with opened(source) as archive:
        chapters = _chapters(archive)
        if not chapters:
            raise DamagedDocumentError(source.name, "it lacks its list of chapters", "download it anew")
        seen = False
        for path in chapters:
            try:
                data = archive.read(path)
            except KeyError:
                continue
            for segment in html.segments([decode(data)], source):
                seen = True
                yield replace(segment, page=None)
        if not seen and "META-INF/encryption.xml" in archive.namelist():
            raise EncryptedDocumentError(source.name, "it is protected (DRM)")
    if not seen:
        raise EmptyDocumentError(source.name, "no chapter holds text")


def _chapters(archive: zipfile.ZipFile) -> list[str]:
    container = tree(archive, "META-INF/container.xml")
    roots = [] if container is None else [node for node in container.iter() if local(node) == "rootfile"]
    package = roots[0].get("full-path", "") if roots else ""
    root = tree(archive, package)
    if root is None:
        return []
    folder = posixpath.dirname(package)
    items = {node.get("id"): node.get("href", "") for node in root.iter() if local(node) == "item"}
    order = [items.get(node.get("idref"), "") for node in root.iter() if local(node) == "itemref"]
    return [posixpath.normpath(posixpath.join(folder, unquote(href))) for href in order if href]
