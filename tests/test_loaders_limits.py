"""Files that hang, explode or kill their parser cost themselves alone, and size costs no memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant.errors import DamagedDocumentError, DocumentError, DocumentTooLargeError, ParserLimitError
from assistant.loaders import Cancelled, Parser, find, load, runner

ROOT = Path(__file__).resolve().parent.parent

# The real child with one loader more, for files that must misbehave on cue.
MISBEHAVING = """
import os, sys, time
from assistant.loaders import child, registry
from assistant.records import Segment

def load(source):
    yield Segment("Begun.")
    what = source.path.read_text()
    if what == "hang":
        time.sleep(600)
    if what == "spin":
        while True: pass
    if what == "die":
        os.abort()
    if what == "grow":
        hoard = bytearray(4 << 30)
    if what == "throw":
        raise KeyError("internal")
    if what == "drip":
        for number in range(10**9):
            yield Segment("x" * 8000)
    if what == "print":
        print("noise on standard output", flush=True)
        os.write(1, b"more noise")
    yield Segment("Ended.")

registry.load_bad = load
registry.__dict__["SUPPORTED"][".bad"] = registry.Format("bad", "registry", "load_bad")
sys.exit(child.main(sys.argv))
"""


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parser]:
    script = tmp_path / "misbehaving.py"
    script.write_text(MISBEHAVING)
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        assert command[1:4] == ["-P", "-m", "assistant.loaders.child"]
        return real([command[0], str(script), *command[4:]], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    with Parser(timeout_s=1.5, max_bytes=1 << 30) as parser:
        yield parser


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("hang", ParserLimitError, "gave no text for 1.5 s"),
        ("spin", ParserLimitError, r"1\.5 s"),
        ("die", ParserLimitError, "died .SIGABRT."),
        ("grow", ParserLimitError, "1024 MiB of memory"),
        ("throw", DamagedDocumentError, "damaged"),
        ("drip", DocumentTooLargeError, "far more text"),
    ],
)
def test_a_misbehaving_parser_costs_its_file_alone(
    parser: Parser, tmp_path: Path, what: str, error: type[DocumentError], words: str
) -> None:
    bad, good = tmp_path / "a.bad", tmp_path / "b.txt"
    bad.write_text(what)
    good.write_text("All is well.")
    with pytest.raises(error, match=words):
        deque(parser.load(bad), maxlen=0)
    assert [segment.text for segment in parser.load(good)] == ["All is well."]


def test_what_libraries_print_is_no_frame(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "a.bad").write_text("print")
    assert [segment.text for segment in parser.load(tmp_path / "a.bad")] == ["Begun.", "Ended."]


def test_a_hanging_parser_can_be_cancelled(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "a.bad").write_text("hang")
    cancel = threading.Event()
    parts = parser.load(tmp_path / "a.bad", cancelled=cancel.is_set)
    cancel.set()
    with pytest.raises(Cancelled):
        list(parts)
    assert parser.pid is None


def test_the_clock_stops_while_nobody_reads(tmp_path: Path) -> None:
    """A slow reader (the embedder) must not make the parser look slow, and the parser must wait for it."""
    path = tmp_path / "long.txt"
    path.write_text("A paragraph of some words.\n\n" * 100_000)
    with Parser(timeout_s=1) as parser:
        parts = parser.load(path)
        next(parts)
        assert parser.pid is not None
        time.sleep(1.5)
        assert sum(1 for _ in parts) == 99_999


def test_one_child_serves_many_files_and_is_replaced_when_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Words.")
    with Parser() as parser:
        list(parser.load(path))
        first = parser.pid
        list(parser.load(path))
        assert parser.pid == first
        monkeypatch.setattr(runner, "_MAX_RSS", 1)
        list(parser.load(path))
        assert parser.pid is None


def test_a_reader_that_leaves_early_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("One.\n\nTwo.\n\n" * 50_000)
    with Parser() as parser:
        parts = parser.load(path)
        next(parts)
        pid = parser.pid
        parts.close()  # type: ignore[attr-defined]
        assert parser.pid is None
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        (tmp_path / "b.txt").write_text("Three.")
        assert [segment.text for segment in parser.load(tmp_path / "b.txt")] == ["Three."]


def test_the_child_holds_no_heavy_library(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("One.\n\nTwo.\n\n" * 100_000)
    with Parser() as parser:
        parts = parser.load(path)
        next(parts)
        loaded = Path(f"/proc/{parser.pid}/maps").read_text()
        assert not any(name in loaded for name in ("torch", "numpy", "chromadb"))
        status = Path(f"/proc/{parser.pid}/status").read_text()
        assert int(status.split("VmRSS:")[1].split()[0]) < 60_000  # kB
        assert "THIMBLE_API_KEY" not in Path(f"/proc/{parser.pid}/environ").read_text()


def test_a_segfaulting_child_between_jobs_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Words.")
    with Parser() as parser:
        list(parser.load(path))
        assert parser.pid is not None
        os.kill(parser.pid, signal.SIGSEGV)
        time.sleep(0.2)
        assert [segment.text for segment in parser.load(path)] == ["Words."]


MEASURE = """
import sys
from assistant.loaders import Parser
with Parser() as parser:
    longest = total = 0
    for segment in parser.load(sys.argv[1]):
        longest, total = max(longest, len(segment.text)), total + len(segment.text)
    peaks = [[line.split()[1] for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM")][0]
             for pid in ("self", parser.pid)]
print(longest, total, *peaks)
"""


@pytest.mark.parametrize("name", ["line.txt", "line.md", "lines.txt", "rows.csv", "list.json", "page.html", "deep.xml"])
def test_memory_does_not_depend_on_size(tmp_path: Path, name: str) -> None:
    """64 MB in a line, and 5 MB of lines, rows, items and paragraphs: neither process may hold them."""
    path = tmp_path / name
    with path.open("w") as stream:
        if name.startswith("line."):
            for _ in range(64):
                stream.write("word after word " * 65_536)
        elif name == "list.json":
            stream.write("[" + ",".join('{"name": "Acme", "price": 3}' for _ in range(150_000)) + "]")
        else:
            unit = {
                "lines.txt": "A line of the log that says little.\n" * 3 + "\n",
                "rows.csv": "Acme,3,on the shelf\n",
                "page.html": "<p>A paragraph of a page.",
                "deep.xml": "<r><a>field</a><b>3</b></r>",
            }[name]
            stream.write("name,price,place\n" if name == "rows.csv" else "<all>" if name == "deep.xml" else "")
            for _ in range((5 << 20) // len(unit) // 1000):
                stream.write(unit * 1000)
            stream.write("</all>" if name == "deep.xml" else "")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    longest, total, ours, child = (int(word) for word in done.stdout.split())
    assert longest <= 16_000
    assert total > (2 << 20)
    assert max(ours, child) < 60_000  # kB, the interpreter included


@pytest.mark.parametrize("kind", ["html", "xml", "json", "docx", "odt", "md"])
def test_deep_nesting_ends_one_way_or_the_other(tmp_path: Path, kind: str) -> None:
    deep = 100_000
    path = tmp_path / f"a.{kind}"
    nested = "<b>" * deep + "bottom" + "</b>" * deep
    if kind == "json":
        path.write_text("[" * deep + '"bottom"' + "]" * deep)
    elif kind == "docx":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("[Content_Types].xml", "<x/>")
            archive.writestr("word/document.xml", f"<document><body><p>{nested}</p></body></document>")
    elif kind == "odt":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
            archive.writestr("content.xml", f"<c><p>{nested}</p></c>")
    else:
        path.write_text(">" * deep + " bottom" if kind == "md" else nested)
    try:
        found = list(load(path, timeout_s=20))
    except DocumentError:
        return
    assert any("bottom" in segment.text for segment in found)


def test_a_large_sheet_and_one_with_its_last_cell_filled_end_well(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Large")
    for row in range(8_000):
        sheet.append([row, *range(9)])
    book.save(tmp_path / "large.xlsx")
    assert sum(1 for _ in load(tmp_path / "large.xlsx", max_bytes=400 << 20)) >= 8_000
    far = openpyxl.Workbook()
    far.active["A1"], far.active["XFD1048576"] = "first", "last"
    far.save(tmp_path / "far.xlsx")
    try:
        found = [segment.text for segment in load(tmp_path / "far.xlsx", timeout_s=10, max_bytes=400 << 20)]
    except ParserLimitError:
        return
    assert "first" in found


# Folders


def test_a_folder_is_walked_without_hidden_files_and_links_that_lead_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / ".git", root / "node_modules", root / "sub" / ".hidden", outside):
        folder.mkdir(parents=True)
    for path in (root / "a.txt", root / "sub" / "b.txt", root / ".secret", root / "~$a.docx", root / ".git" / "c.txt",
                 root / "node_modules" / "d.txt", root / "sub" / ".hidden" / "e.txt", outside / "f.txt"):  # fmt: skip
        path.write_text("x")
    (root / "link-out.txt").symlink_to(outside / "f.txt")
    (root / "link-folder").symlink_to(outside, target_is_directory=True)
    (root / "link-in.txt").symlink_to(root / "a.txt")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "itself.txt").symlink_to(root / "itself.txt")
    (root / "gone.txt").symlink_to(root / "nothing.txt")
    os.mkfifo(root / "pipe")
    found = {str(Path(file.shown).relative_to(root)): file for file in find([root])}
    assert set(found) == {"a.txt", "sub/b.txt", "link-out.txt", "link-in.txt", "pipe", "itself.txt", "gone.txt"}
    problems = {name: file.problem[0] for name, file in found.items() if file.problem}
    assert problems == {
        "link-out.txt": "it is a link that leads out of the folder", "itself.txt": "it is a link that leads to itself",
        "gone.txt": "there is no such file", "pipe": "it is not a regular file",
    }  # fmt: skip
    (loop,) = find([root / "itself.txt"])
    assert loop.problem is not None
    assert [file.path.name for file in find([root / ".secret"])] == [".secret"]  # named outright, it is meant


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    """Here it goes away while the folder above is walked: permissions don't stop whoever runs tests as root."""
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    files = find([tmp_path])
    assert next(files).path.name == "a.txt"
    (tmp_path / "sub").rmdir()
    (file,) = files
    assert file.problem == ("the folder can't be listed (No such file or directory)", "check its permissions")
    assert file.path == tmp_path / "sub"
    assert file.expected_chunks == 0
