"""Each format family, made by real writers where there are any, read through the child process."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.chunking import extracted
from assistant.errors import (
    DamagedDocumentError,
    DocumentTooLargeError,
    EmptyDocumentError,
    UnsupportedFormatError,
)
from assistant.loaders import SUPPORTED, Parser
from assistant.loaders.base import Outline, Table, pieces, squeeze
from assistant.loaders.legacy import load as load_legacy
from assistant.records import Segment


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    with Parser(timeout_s=30) as parser:
        yield parser


def load(parser: Parser, path: Path, **options: object) -> list[Segment]:
    return list(parser.load(path, **options))  # type: ignore[arg-type]


def texts(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments]


# Text and encodings

HEBREW = "שלום לכולם. זהו מסמך קצר על קומקום חשמלי ועל תה ירוק. המים רותחים בתשע."
JAPANESE = "これは短い文書です。お湯は九時に沸きます。やかんは赤くて、とても静かです。"
FRENCH = "L’été dernier, la bouilloire était à côté du thé. Où est-elle passée ? Ça, personne ne le sait."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Kettle, plain.", "ascii"),
        (FRENCH, "utf-8"), (FRENCH, "utf-8-sig"), (FRENCH, "utf-16"), (FRENCH, "utf-16-le"), (FRENCH, "utf-16-be"),
        (FRENCH, "utf-32"), (FRENCH, "utf-32-le"), (FRENCH, "utf-32-be"), (FRENCH, "cp1252"),
        (HEBREW, "iso-8859-8"), (HEBREW, "cp1255"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp"),
        (JAPANESE, "utf-16"),
    ],
)  # fmt: skip
def test_encodings_are_found(parser: Parser, tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "note.txt"
    path.write_bytes("\n\n".join([text] * 8).encode(encoding))
    assert texts(load(parser, path)) == [text] * 8


def test_one_bad_byte_does_not_turn_a_book_into_mojibake(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(("Über den Kessel. " * 20_000).encode() + b"\xff" + " Grün.".encode())
    text = "".join(extracted(load(parser, path)))
    assert text.count("Über") == 20_000
    assert text.endswith("Grün.")


def test_a_text_file_comes_back_verbatim(parser: Parser, tmp_path: Path) -> None:
    text = "First line\n  indented here\n\n\nA paragraph\nof two lines.\n\n\tTabbed.\nEnd"
    path = tmp_path / "a.txt"
    path.write_text(text.replace("\n", "\r\n"), newline="")
    segments = load(parser, path)
    assert "".join(extracted(segments)) == text
    assert [segment.line for segment in segments] == [1, 5, 8]


def test_markdown_knows_headings_tables_and_code(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "# Shop\n\nOpen daily.\n\nPrices\n------\n\n| Name | Price |\n|:--|--:|\n| Acme | 3 |\n| Bo\\|lt | 4 |\n\n"
        "After.\n\n```python\n# not a heading\nx = 1\n```\n\n### Deep #\n\nLast.\n![x](data:image/png;base64,"
        + "A" * 500 + ")\n"
    )  # fmt: skip
    segments = load(parser, path)
    assert [(s.kind, s.text, s.heading, s.line) for s in segments if s.kind != "text"] == [
        ("heading", "# Shop", ("Shop",), 1),
        ("heading", "Prices\n------", ("Shop", "Prices"), 5),
        ("row", "Name: Acme | Price: 3", ("Shop", "Prices"), 10),
        ("row", "Name: Bo|lt | Price: 4", ("Shop", "Prices"), 11),
        ("code", "```python\n# not a heading\nx = 1\n```", ("Shop", "Prices"), 15),
        ("heading", "### Deep #", ("Shop", "Prices", "Deep"), 20),
    ]
    assert [s.row for s in segments if s.kind == "row"] == [2, 3]
    assert "AAAA" not in segments[-1].text


def test_restructured_text_org_and_tex_know_headings(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "a.rst").write_text("=====\nTitle\n=====\n\nIntro.\n\nPart\n----\n\nBody.\n\nOther\n-----\n\nEnd.\n")
    (tmp_path / "a.org").write_text("* Title\nIntro.\n** Part\nBody.\n")
    (tmp_path / "a.tex").write_text("\\section{Title}\nIntro.\n\\subsection{Part}\nBody.\n")
    for name in ("a.rst", "a.org", "a.tex"):
        body = next(segment for segment in load(parser, tmp_path / name) if segment.text == "Body.")
        assert body.heading == ("Title", "Part"), name


def test_html_reads_blocks_tables_and_skips_scripts(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(
        "<html><head><title>Desk</title><style>p{}</style></head><body><h1>Repair</h1><p>One<b>two</b> &amp; three<br>"
        "four<p>Five<script>var no = 1;</script><h2>List</h2><ul><li>a<li>b</ul>"
        "<table><tr><th>Part<th>Price<tr><td rowspan=2>Lid<td>3<tr><td>4</table><pre>x\n  y</pre>"
        "<table><tr><td><table><tr><td>inner</table></table><p>Ende caf\u00e9"
    )
    segments = load(parser, path)
    assert texts(segments) == [
        "Desk", "Repair", "Onetwo & three\nfour", "Five", "List", "- a", "- b", "Part: Lid | Price: 3",
        "Part: Lid | Price: 4", "x\n  y", "inner", "Ende caf\u00e9",
    ]  # fmt: skip
    assert segments[-1].heading == ("Repair", "List")


def test_html_encoding_is_read_from_the_page(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(f'<html><head><meta charset="shift_jis"></head><p>{JAPANESE}</p>'.encode("shift_jis"))
    assert texts(load(parser, path)) == [JAPANESE]


# Tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_rows_keep_their_header(parser: Parser, tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(
            [["Name", "Note", "Price"], ["Acme", "two\nlines, here", "3.50"], ["Bolt", "", "4"]]
        )
    segments = load(parser, path)
    assert texts(segments) == ["Name: Acme | Note: two lines, here | Price: 3.50", "Name: Bolt | Price: 4"]
    assert [segment.row for segment in segments] == [2, 3]


def test_csv_without_a_header_has_none(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("2024-01-01,17,19\n2024-01-02,18,20\n")
    assert texts(load(parser, path)) == ["2024-01-01 | 17 | 19", "2024-01-02 | 18 | 20"]


def test_spreadsheets_have_sheets_rows_and_dates(parser: Parser, tmp_path: Path) -> None:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Stock"
    sheet.append(["Article", "Amount", "Since"])
    sheet.append(["Kettle", 12.0, datetime.datetime(2024, 5, 1)])
    sheet.append([])
    sheet.append(["Total", 12.5])
    book.create_sheet("Empty")
    book.create_sheet("Notes").append(["Only one cell"])
    path = tmp_path / "a.xlsx"
    book.save(path)
    segments = load(parser, path)
    assert [(s.text, s.page, s.row) for s in segments] == [
        ("Stock", 1, None),
        ("Article: Kettle | Amount: 12 | Since: 2024-05-01", 1, 2),
        ("Total: 12.5", 1, 4),
        ("Notes", 3, None),
        ("Only one cell", 3, 1),
    ]
    assert segments[1].heading == ("Stock",)


def test_empty_rows_count(parser: Parser, tmp_path: Path) -> None:
    """A row keeps the number it has in its file or table, whatever is empty above it."""
    import docx
    import openpyxl
    import pptx

    rows = [("Name", "Price"), ("Kettle", "3"), ("", ""), ("Cup", "1")]
    document, deck, book = docx.Document(), pptx.Presentation(), openpyxl.Workbook()
    in_word = document.add_table(rows=4, cols=2)
    in_slide = deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_table(4, 2, 0, 0, 9**7, 9**7).table
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            in_word.cell(number, column).text = in_slide.cell(number, column).text = text
            book.active.cell(number + 4, column + 1, text or None)
    document.save(str(tmp_path / "a.docx"))
    deck.save(str(tmp_path / "a.pptx"))
    book.save(tmp_path / "a.xlsx")
    cells = "".join(f"<tr><td>{name}</td><td>{price}</td></tr>" for name, price in rows)
    (tmp_path / "a.html").write_text(f"<table>{cells}</table>")
    (tmp_path / "a.md").write_text("| Name | Price |\n|-|-|\n| Kettle | 3 |\n| | |\n| Cup | 1 |\n")
    (tmp_path / "a.csv").write_text("Name,Price\nKettle,3\n\nCup,1\n")
    (tmp_path / "a.ods").write_bytes(_ods(rows, above=3))
    found = {
        path.suffix: [segment.row for segment in load(parser, path) if segment.kind == "row"]
        for path in tmp_path.iterdir()
    }  # fmt: skip
    assert found == {".docx": [2, 4], ".pptx": [2, 4], ".html": [2, 4], ".md": [2, 4], ".csv": [2, 4],
                     ".xlsx": [5, 7], ".ods": [5, 7]}  # fmt: skip


def _ods(rows: list[tuple[str, str]], above: int) -> bytes:
    """Write a sheet with so many empty rows above the others."""

    def cell(text: str) -> str:
        value = f'office:value-type="string"><text:p>{text}</text:p>' if text else ">"
        return f"<table:table-cell {value}</table:table-cell>"

    names = "".join(f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
                    for name in ("office", "table", "text"))  # fmt: skip
    body = "".join(f"<table:table-row>{cell(a)}{cell(b)}</table:table-row>" for a, b in rows)
    empty = f'<table:table-row table:number-rows-repeated="{above}"><table:table-cell/></table:table-row>'
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("META-INF/manifest.xml", "<m/>")
        archive.writestr("content.xml", f"<office:document-content{names}><office:body><office:spreadsheet>"
                         f'<table:table table:name="S">{empty}{body}</table:table></office:spreadsheet></office:body>'
                         "</office:document-content>")  # fmt: skip
    return out.getvalue()


def test_json_becomes_rows(parser: Parser, tmp_path: Path) -> None:
    rows = [{"name": "Acme", "price": 3.5, "tags": ["a", "b"], "at": {"city": "Rome"}}, {"name": "Bolt", "price": None}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    for name in ("a.json", "a.jsonl"):
        segments = load(parser, tmp_path / name)
        assert texts(segments) == ["name: Acme | price: 3.5 | tags: a | tags: b | at.city: Rome", "name: Bolt"]
        assert [segment.row for segment in segments] == [1, 2]
    (tmp_path / "b.json").write_text(
        '{"title": "Shop", "items": [{"n": 123456789012345678901234567890}], "open": true}'
    )
    assert texts(load(parser, tmp_path / "b.json")) == [
        "title: Shop", "items.n: 123456789012345678901234567890", "open: yes",
    ]  # fmt: skip


def test_broken_json_is_named(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, 2')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{oops}\n')
    with pytest.raises(DamagedDocumentError, match="not valid JSON"):
        load(parser, tmp_path / "a.json")
    with pytest.raises(DamagedDocumentError, match="line 2"):
        load(parser, tmp_path / "a.jsonl")


def test_xml_tells_records_from_prose_and_loads_nothing(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("SECRET")
    path = tmp_path / "a.xml"
    path.write_text(
        f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file://{tmp_path}/secret.txt"><!ENTITY y "yy">]>'
        "<r><item><name>Acme</name><price>3</price></item><p>Prose with <b>bold</b> words &x; in it.</p></r>"
    )
    segments = load(parser, path)
    assert texts(segments)[0] == "name: Acme | price: 3"
    assert "Prose with bold words" in texts(segments)[1]
    assert not any("SECRET" in text for text in texts(segments))


# Office, books, mail


def test_word_documents(parser: Parser, tmp_path: Path) -> None:
    import docx

    document = docx.Document()
    document.add_heading("Handbook", 0)
    document.add_heading("Notice", 1)
    document.add_paragraph("Four weeks.")
    document.add_heading("Managers", 2)
    document.add_paragraph("Three months.", style="List Bullet")
    table = document.add_table(rows=3, cols=2)
    for row, cells in zip(table.rows, [("Level", "Weeks"), ("A", "4"), ("B", "12")], strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    document.sections[0].footer.paragraphs[0].text = "Confidential footer"
    path = tmp_path / "a.docx"
    document.save(path)
    segments = load(parser, path)
    assert texts(segments) == [
        "Handbook", "Notice", "Four weeks.", "Managers", "- Three months.", "Level: A | Weeks: 4",
        "Level: B | Weeks: 12", "Confidential footer",
    ]  # fmt: skip
    assert segments[4].heading == ("Handbook", "Notice", "Managers")


def test_word_shows_the_numbers_of_its_lists(parser: Parser, tmp_path: Path) -> None:
    import docx

    document = docx.Document()
    for text in ("First", "Second"):
        document.add_paragraph(text, style="List Number")
    document.add_paragraph("Between")
    document.add_paragraph("Third", style="List Number")
    document.save(tmp_path / "a.docx")
    assert texts(load(parser, tmp_path / "a.docx")) == ["1. First", "2. Second", "Between", "3. Third"]


def test_charts_become_the_tables_they_were_drawn_from(parser: Parser, tmp_path: Path) -> None:
    import pptx
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Cm

    data = CategoryChartData()
    data.categories = ["2023", "2024"]
    data.add_series("Kettles", (120, 150))
    data.add_series("Lids", (80, 95))
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Cm(1), Cm(1), Cm(9), Cm(9), data)
    deck.save(tmp_path / "a.pptx")
    assert texts(load(parser, tmp_path / "a.pptx")) == [
        "2023 | Kettles: 120 | Lids: 80",
        "2024 | Kettles: 150 | Lids: 95",
    ]


def test_slides_are_pages(parser: Parser, tmp_path: Path) -> None:
    import pptx

    deck = pptx.Presentation()
    for number in (1, 2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = f"Body {number}"
        slide.notes_slide.notes_text_frame.text = f"Say {number}"
    path = tmp_path / "a.pptx"
    deck.save(path)
    assert [(s.text, s.page, s.heading) for s in load(parser, path)] == [
        (f"{text} {number}", number, (f"Slide {number}",)) for number in (1, 2) for text in ("Slide", "Body", "Say")
    ]


def test_opendocument_and_epub(parser: Parser, tmp_path: Path) -> None:
    office, text, table = (
        "urn:oasis:names:tc:opendocument:xmlns:" + name + ":1.0" for name in ("office", "text", "table")
    )
    with zipfile.ZipFile(tmp_path / "a.odt", "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        archive.writestr(
            "content.xml",
            f'<o:document-content xmlns:o="{office}" xmlns:t="{text}" xmlns:b="{table}"><o:body><o:text>'
            '<t:h t:outline-level="1">Notice</t:h><t:p>Four<t:s t:c="2"/>weeks<t:span>, or</t:span> so.</t:p>'
            "<t:list><t:list-item><t:p>item</t:p></t:list-item></t:list><b:table><b:table-row><b:table-cell><t:p>Level"
            "</t:p></b:table-cell><b:table-cell><t:p>Weeks</t:p></b:table-cell></b:table-row><b:table-row><b:table-cell>"
            "<t:p>A</t:p></b:table-cell><b:table-cell><t:p>4</t:p></b:table-cell></b:table-row></b:table>"
            "</o:text></o:body></o:document-content>",
        )
    assert texts(load(parser, tmp_path / "a.odt")) == ["Notice", "Four weeks, or so.", "- item", "Level: A | Weeks: 4"]
    with zipfile.ZipFile(tmp_path / "a.epub", "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", '<c><rootfiles><rootfile full-path="b/p.opf"/></rootfiles></c>')
        archive.writestr("b/p.opf", '<p><manifest><item id="2" href="two.html"/><item id="1" href="o%20ne.html"/>'
                         '</manifest><spine><itemref idref="1"/><itemref idref="2"/></spine></p>')  # fmt: skip
        archive.writestr("b/o ne.html", "<h1>One</h1><p>First.</p>")
        archive.writestr("b/two.html", "<h1>Two</h1><p>Second.</p>")
    assert texts(load(parser, tmp_path / "a.epub")) == ["One", "First.", "Two", "Second."]


def test_mail_reads_headers_text_and_attachments(parser: Parser, tmp_path: Path) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = "Kettle – broken", "ann@example.org", "bob@example.org"
    mail.set_content("The lid is loose.")
    mail.add_alternative("<p>The lid is <b>loose</b>.</p>", subtype="html")
    mail.add_attachment(b"part,price\nlid,3\n", maintype="text", subtype="csv", filename="parts.csv")
    mail.add_attachment(b"\x89PNG....", maintype="image", subtype="png", filename="photo.png")
    path = tmp_path / "a.eml"
    path.write_bytes(bytes(mail))
    segments = load(parser, path)
    assert texts(segments) == [
        "Subject: Kettle – broken\nFrom: ann@example.org\nTo: bob@example.org", "The lid is loose.",
        "Attachment: parts.csv", "part: lid | price: 3", "Attachment: photo.png",
    ]  # fmt: skip
    assert segments[3].heading == ("Kettle – broken", "parts.csv")


def test_rtf_and_notebooks(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "a.rtf").write_bytes(rb"{\rtf1\ansi\ansicpg1252 First caf\'e9.\par Second.\par}")
    assert texts(load(parser, tmp_path / "a.rtf")) == ["First café.", "Second."]
    cells = [
        {"cell_type": "markdown", "source": ["# Plan\n", "\n", "Boil water."]},
        {"cell_type": "code", "source": "print(3)", "outputs": [{"output_type": "stream", "text": ["3\n"]}]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    segments = load(parser, tmp_path / "a.ipynb")
    assert [(s.text, s.kind, s.heading) for s in segments] == [
        ("# Plan", "heading", ("Plan",)), ("Boil water.", "text", ("Plan",)), ("print(3)", "code", ("Plan",)),
        ("3", "code", ("Plan",)),
    ]  # fmt: skip


def test_pdf_gives_pages_headings_labels_and_takes_a_password(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(_pdf(["Chapter One Water boils at one hundred degrees.", "Second page text."]))
    segments = load(parser, path)
    assert [(s.page, s.kind, s.text, s.heading) for s in segments] == [
        (1, "heading", "Chapter One", ("Chapter One",)),
        (1, "text", "Water boils at one hundred degrees.", ("Chapter One",)),
        (2, "text", "Second page text.", ("Chapter One",)),
    ]
    assert segments[0].label == "i"


def test_a_pdf_without_text_says_so(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    path.write_bytes(_pdf([""]))
    with pytest.raises(EmptyDocumentError, match="no text"):
        load(parser, path)


# Files that are not what they seem


def test_content_decides_over_the_name(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "really-pdf.txt").write_bytes(_pdf(["Hello there."]))
    (tmp_path / "really-html.doc").write_text("<html><p>Hello there.</p></html>")
    (tmp_path / "README").write_text("Hello there.")
    for name in ("really-pdf.txt", "really-html.doc", "README"):
        assert "Hello there." in texts(load(parser, tmp_path / name)), name


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("a.txt", b"", EmptyDocumentError, "empty"),
        ("a.md", b" \n\t\n", EmptyDocumentError, "no text"),
        ("a.txt", bytes(range(256)) * 9, UnsupportedFormatError, "binary"),
        ("a.docx", b"PK\x03\x04 broken", DamagedDocumentError, "zip"),
        ("a.docx", b"just words", DamagedDocumentError, "not a Word file"),
        ("a.pdf", b"just words", DamagedDocumentError, "not a PDF"),
        ("a.pdf", b"%PDF-1.4 nothing more", DamagedDocumentError, "not a readable PDF"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", UnsupportedFormatError, "an image"),
        ("a.xyz", b"words", UnsupportedFormatError, "no loader reads .xyz"),
        ("a.zip", b"", EmptyDocumentError, "empty"),
        ("a.ipynb", b"[]", DamagedDocumentError, "not a notebook"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600 + "EncryptedPackage".encode("utf-16-le"),
         DamagedDocumentError, "encrypted and can't be decrypted"),
    ],
)  # fmt: skip
def test_each_bad_file_has_its_own_reason(
    parser: Parser, tmp_path: Path, name: str, data: bytes, error: type[Exception], words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error, match=words) as caught:
        load(parser, path, name="shown name")
    assert str(caught.value).startswith("shown name: ")


def test_a_plain_zip_and_a_zip_bomb_are_refused(parser: Parser, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UnsupportedFormatError, match="zip archive"):
        load(parser, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as stream:
            for _ in range(200):
                stream.write(b"\0" * (1 << 20))
    with pytest.raises(DocumentTooLargeError, match="zip bomb"):
        load(parser, tmp_path / "bomb.docx")


def test_old_office_files_are_refused_by_name_without_a_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assistant.loaders.base import Source

    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UnsupportedFormatError, match="LibreOffice or antiword"):
        list(load_legacy(Source(tmp_path / "a.doc", "a.doc")))


def test_every_format_names_a_loader_that_exists() -> None:
    import importlib

    for format_ in set(SUPPORTED.values()):
        module = importlib.import_module(f"assistant.loaders.{format_.module}")
        assert callable(getattr(module, format_.function))


# Shared parts


@given(st.text(max_size=400), st.integers(5, 60))
def test_pieces_put_together_are_the_text(text: str, limit: int) -> None:
    parts = list(pieces(text, limit))
    assert "".join(glue + piece for glue, piece in parts) == text.strip()
    assert all(0 < len(piece) <= limit for _, piece in parts)


@given(st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=8), st.booleans())
def test_tables_lose_no_cell(rows: list[list[str]], convention: bool) -> None:
    table = Table(convention=convention)
    lines = [line for row in rows for _, line in table.add(row)] + [line for _, line in table.close()]
    said = " ".join(lines)
    filled = [[" ".join(squeeze(cell).split()) for cell in row] for row in rows]
    for row in [row for row in filled if any(row)][1:]:
        assert all(cell in said for cell in row)


def test_an_outline_climbs_and_falls() -> None:
    outline = Outline()
    outline.enter(1, "A")
    outline.enter(3, "deep")
    assert outline.enter(2, "B") == ("A", "B")
    assert outline.enter(1, "C") == ("C",)


def _pdf(pages: list[str]) -> bytes:
    """Write a PDF by hand: a page a text, the first labelled ``i``, and an outline entry "Chapter One" on it."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R/Outlines 3 0 R/PageLabels<</Nums[0<</S/r>>1<</S/D/St 2>>]>>>>",
        f"<</Type/Pages/Kids[{' '.join(f'{6 + 2 * n} 0 R' for n in range(len(pages)))}]/Count {len(pages)}>>".encode(),
        b"<</Type/Outlines/First 4 0 R/Last 4 0 R/Count 1>>",
        b"<</Title(Chapter One)/Parent 3 0 R/Dest[6 0 R/Fit]>>",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, text in enumerate(pages):
        head = f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents {7 + 2 * number} 0 R"
        objects.append(f"{head}/Resources<</Font<</F 5 0 R>>>>>>".encode())
        content = f"BT /F 12 Tf 50 700 Td ({text}) Tj ET".encode()
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(content), content))
    data, places = b"%PDF-1.5\n", []
    for number, item in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj%s endobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table) + trailer
