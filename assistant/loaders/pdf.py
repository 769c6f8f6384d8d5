"""PDF, through PDFium: the text of each page, its label, and the outline as headings."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from assistant.errors import DamagedDocumentError, EmptyDocumentError, EncryptedDocumentError
from assistant.records import Segment

from .base import Outline, Source, one_line, squeeze, text_segments

_HYPHEN = re.compile("(?<=\\w)[\x02\ufffe]\\s*|\u00ad\\s*(?=\\w)")  # how PDFium marks a word broken over two lines

_ARABIC = re.compile("[\u0621-\u064a]")
_LAM_ALEF = re.compile("[\u0622\u0623\u0625\u0627]\u0644")
_SCRIPT_CHANGE = re.compile("(?<=[A-Za-z])(?=[\u0621-\u064a])|(?<=[\u0621-\u064a])(?=[A-Za-z])")


def load(source: Source) -> Iterator[Segment]:
    """Load a PDF page by page.

    Raises:
        EncryptedDocumentError: It needs a password, or another one.
        DamagedDocumentError: PDFium can't open it.
        EmptyDocumentError: No page holds text; a scan is called one.
    """
    document = _open(source)
    try:
        if document.get_formtype() != raw.FORMTYPE_NONE:
            document.init_forms()
        titles, outline = _titles(document), Outline()
        seen, images, failed = False, 0, 0
        for index in range(len(document)):
            try:
                text, has_image = _page(document, index)
            except pdfium.PdfiumError:
                failed += 1
                continue
            images += has_image
            for segment in _sections(text, titles.get(index, []), outline, index + 1, _label(document, index)):
                seen = True
                yield segment
        if not seen:
            raise _nothing(source, len(document), images, failed)
    finally:
        document.close()


def _open(source: Source) -> pdfium.PdfDocument:
    """Open a PDF without a password, then with each that was given."""
    for password in (None, *source.passwords):
        try:
            return pdfium.PdfDocument(source.path, password=password)
        except pdfium.PdfiumError as exc:
            error = exc
        if "password" not in str(error).lower():
            break
    if "password" in str(error).lower():
        if source.passwords:
            raise EncryptedDocumentError(source.name, "it is encrypted and no password that was given opens it",
                                         "check the password") from error  # fmt: skip
        raise EncryptedDocumentError(source.name, "it is encrypted", "give its password") from error
    if "security" in str(error).lower():
        raise EncryptedDocumentError(
            source.name, "its kind of encryption is not supported", "save it without encryption"
        ) from error
    raise DamagedDocumentError(
        source.name, "it is not a readable PDF", "open and save it anew, or print it to PDF"
    ) from error


def _nothing(source: Source, pages: int, images: int, failed: int) -> Exception:
    if failed:
        return DamagedDocumentError(source.name, f"none of its {pages} pages can be read")
    if not pages:
        return EmptyDocumentError(source.name, "the PDF has no pages")
    count = "its page holds" if pages == 1 else f"its {pages} pages hold"
    if images:
        return EmptyDocumentError(source.name, f"{count} images and no text: it is a scan",
                                  "run text recognition (OCR) on it and add the result")  # fmt: skip
    return EmptyDocumentError(source.name, f"{count} no text", "if it shows any, run text recognition (OCR) on it")


def _page(document: pdfium.PdfDocument, index: int) -> tuple[str, bool]:
    """Return the text of a page, the values of its form fields, and whether there is an image on it."""
    page = document[index]
    try:
        words = page.get_textpage()
        try:
            text = _arabic(words, words.get_text_range()) if words.count_chars() > 0 else ""
        finally:
            words.close()
        notes = _annotations(document, page)
        text = "\n".join([text, *notes]) if notes else text
        has_image = not text.strip() and any(
            True for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=4)
        )
        return squeeze(_HYPHEN.sub("", text)), has_image
    finally:
        page.close()


def _arabic(words: pdfium.PdfTextPage, text: str) -> str:
    """Mend what PDFium does to Arabic: letters of a ligature come in reverse, and spaces before Latin words get lost.

    The letters of one ligature share one box on the page; that tells them from letters that stand in this order.
    """
    if not _ARABIC.search(text) or len(text) != words.count_chars():
        return text
    letters = list(text)
    for found in _LAM_ALEF.finditer(text):
        first = found.start()
        if words.get_charbox(first) == words.get_charbox(first + 1):
            letters[first], letters[first + 1] = letters[first + 1], letters[first]
    return _SCRIPT_CHANGE.sub(" ", "".join(letters))


def _annotations(document: pdfium.PdfDocument, page: pdfium.PdfPage) -> list[str]:
    """Return what form fields, free text and notes say: they stand beside the page's own text."""
    found = []
    for number in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, number)
        if not annotation:
            continue
        try:
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            if kind == raw.FPDF_ANNOT_WIDGET and document.formenv:
                name = _wide(raw.FPDFAnnot_GetFormFieldName, document.formenv, annotation)
                value = _wide(raw.FPDFAnnot_GetFormFieldValue, document.formenv, annotation)
                if value and value != "Off":
                    found.append(f"{name}: {value}" if name else value)
            elif kind in (raw.FPDF_ANNOT_FREETEXT, raw.FPDF_ANNOT_TEXT):
                found.append(_wide(raw.FPDFAnnot_GetStringValue, annotation, b"Contents"))
        finally:
            raw.FPDFPage_CloseAnnot(annotation)
    return [one_line(text) for text in found if text.strip()]


def _wide(function: object, *arguments: object) -> str:
    """Call a PDFium function that fills a buffer with UTF-16."""
    import ctypes

    size = function(*arguments, None, 0)  # type: ignore[operator]
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    function(*arguments, ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), size)  # type: ignore[operator]
    return buffer.raw[: size - 2].decode("utf-16-le", "replace")


def _label(document: pdfium.PdfDocument, index: int) -> str:
    """Return what the PDF itself calls the page, if that is not its number."""
    try:
        label = one_line(str(document.get_page_label(index)))
    except (pdfium.PdfiumError, UnicodeError):
        return ""
    return "" if label == str(index + 1) else label[:40]


def _titles(document: pdfium.PdfDocument) -> dict[int, list[tuple[int, str]]]:
    """Return the outline: page index to the (level, title) entries that point there, in order."""
    found: dict[int, list[tuple[int, str]]] = {}
    try:
        for number, entry in enumerate(document.get_toc(max_depth=6)):
            target, title = entry.get_dest(), one_line(entry.get_title())
            index = target.get_index() if target else None
            if number >= 20_000:
                break
            if index is not None and title:
                found.setdefault(index, []).append((entry.level + 1, title))
    except (pdfium.PdfiumError, UnicodeError, ValueError):
        return found
    return found


def _sections(text: str, titles: list[tuple[int, str]], outline: Outline, page: int, label: str) -> Iterator[Segment]:
    """Give a page's text, cut where the outline's titles stand in it."""
    position = 0
    for level, title in titles:
        place = re.compile(r"\s*".join(re.escape(word) for word in title.split()), re.IGNORECASE).search(text, position)
        if place and place.start() > position:
            yield from text_segments(text[position : place.start()], page=page, label=label, heading=outline.path)
        outline.enter(level, title)
        if place:
            yield Segment(place[0].strip() or title, page=page, label=label, heading=outline.path, kind="heading")
            position = place.end()
    yield from text_segments(text[position:], page=page, label=label, heading=outline.path)
