"""Spreadsheets: rows that keep their header; a sheet is a page. Excel's own files are read as a stream."""

from __future__ import annotations

import datetime
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from . import drawing, locked
from .archive import local, opened, tree
from .base import Source, Table, one_line, row_segments, squeeze, text_segments

_BESIDE = re.compile(r"xl/(charts/chart|drawings/drawing|comments|diagrams/data)/?\w*\d*\.xml\Z")
_MAX_EMPTY = 100_000  # rows: below so many empty ones nothing more is looked for


def load_xlsx(source: Source) -> Iterator[Segment]:
    """Load an .xlsx file row by row.

    Raises:
        EmptyDocumentError: No cell holds text.
        DamagedDocumentError: It is not a workbook.
    """
    import openpyxl

    with opened(source) as archive:  # its sizes are checked here
        drawn = list(_drawn(archive))
    warnings.simplefilter("ignore")  # about styles and extensions that don't matter here
    try:
        book = openpyxl.load_workbook(source.path, read_only=True, data_only=True, keep_links=False)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - openpyxl throws almost anything at files that Excel itself opens
        yield from load_other(source)
        return
    seen = False
    try:
        for number, sheet in enumerate(book.worksheets, 1):
            sheet.reset_dimensions()  # what the file declares is often wrong
            for segment in _sheet(sheet.iter_rows(values_only=True), number, sheet.title):
                seen = True
                yield segment
    except Exception as exc:
        if seen or isinstance(exc, MemoryError):
            raise
        yield from load_other(source)
        return
        for sheet in book.chartsheets:
            yield Segment(one_line(sheet.title), kind="heading")
    finally:
        book.close()
    yield from drawn
    if not seen and not drawn:
        raise EmptyDocumentError(source.name, "no cell holds text")


def load_other(source: Source) -> Iterator[Segment]:
    """Load .xls, .xlsb and .ods, and .xlsx files that need a more lenient reader.

    Raises:
        EmptyDocumentError: No cell holds text.
        EncryptedDocumentError: It needs a password.
        DamagedDocumentError: It is not a workbook.
    """
    import python_calamine as calamine

    try:
        book = calamine.load_workbook(str(source.path))
        names = list(book.sheet_names)
    except calamine.PasswordError:
        yield from locked.load(source)
        return
    except (calamine.CalamineError, OSError) as exc:
        raise DamagedDocumentError(source.name, "it is not a readable workbook", "open and save it anew") from exc
    seen = failed = False
    for number, name in enumerate(names, 1):
        try:
            sheet = book.get_sheet_by_name(name)
        except (calamine.CalamineError, OSError):
            failed = True  # a chart sheet, or a broken one among others
            continue
        for segment in _sheet(sheet.iter_rows(), number, name):
            seen = True
            yield segment
    if failed and not seen:
        raise DamagedDocumentError(source.name, "none of its sheets can be read", "open and save it anew")
    if not seen:
        raise EmptyDocumentError(source.name, "no cell holds text")


def _drawn(archive: zipfile.ZipFile) -> Iterator[Segment]:
    """Give what stands beside the cells: charts, text boxes and comments."""
    for name in sorted(archive.namelist()):
        kind = _BESIDE.match(name)
        root = tree(archive, name) if kind else None
        if root is None or kind is None:
            continue
        if kind[1] == "charts/chart":
            yield from drawing.chart(root)
        elif kind[1] == "comments":
            texts = ("".join(part.text or "" for part in node.iter() if local(part) == "t")
                     for node in root.iter() if local(node) == "comment")  # fmt: skip
            for text in texts:
                yield from text_segments(squeeze(text))
        else:
            yield from text_segments(squeeze(drawing.paragraphs(root)))


def _sheet(rows: Iterable[Iterable[Any]], number: int, name: str) -> Iterator[Segment]:
    """Give the rows of a sheet; an empty row ends one table and begins another."""
    table, begun, empty = Table(convention=True), False, 0
    facts: dict[str, Any] = {"page": number, "label": name[:40], "heading": (one_line(name)[:200],) if name else ()}
    if name:
        yield_name = Segment(one_line(name), kind="heading", **facts)
    held = bool(name)
    for index, row in enumerate(rows, 1):
        cells = [_text(value) for value in row]
        if any(cells):
            empty = 0
            ready = table.add(cells, number=index)
        else:
            empty += 1
            if empty > _MAX_EMPTY:
                break
            ready = table.close()
            table = Table(convention=True)
        if ready and held:
            yield yield_name
            held = False
        for segment in row_segments(ready, begun=begun, **facts):
            begun = True
            yield segment
        if empty:
            begun = False
    ready = table.close()
    if ready and held:
        yield yield_name
    yield from row_segments(ready, begun=begun, **facts)


def _text(value: Any) -> str:
    """Write a cell's value as a person would."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(round(value, 10))
    if isinstance(value, datetime.datetime):
        plain = value.time() == datetime.time()
        return value.date().isoformat() if plain else value.isoformat(sep=" ", timespec="minutes")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return one_line(str(value))
