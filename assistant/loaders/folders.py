"""What files a user means by some paths, and about how much text is in them. Opens none of them to read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SKIPPED_FOLDERS = frozenset(["node_modules", "__pycache__", "__MACOSX", "venv", "site-packages", "bower_components"])
_SKIPPED_FILES = frozenset(["thumbs.db", "desktop.ini"])

# Characters of text for each byte of a file: generous, for a plan that must not run out.
_TEXT_SHARE = {
    ".pdf": 0.2, ".docx": 0.5, ".pptx": 0.1, ".xlsx": 4.0, ".xls": 1.0, ".odt": 0.5, ".odp": 0.1, ".ods": 4.0,
    ".epub": 1.5, ".html": 0.5, ".htm": 0.5, ".xml": 0.6, ".eml": 0.5, ".rtf": 0.3, ".doc": 0.3, ".ipynb": 0.3,
    ".ppt": 0.1, ".csv": 2.0, ".tsv": 2.0,
}  # fmt: skip
_MOST_FROM_BINARY = 20_000_000  # characters: a larger PDF or slide show is images, not text
_CHUNK_CHARACTERS = 750


@dataclass(frozen=True, slots=True)
class File:
    """A file to ingest.

    Attributes:
        path: Where it is, absolute, links kept.
        shown: As the user would name it.
        problem: Why it can't even be opened, and what would help; empty when it can.
    """

    path: Path
    shown: str
    size_bytes: int = 0
    mtime_ns: int = 0
    problem: tuple[str, str] | None = None

    @property
    def expected_chunks(self) -> int:
        """About how many chunks it will make."""
        characters = self.size_bytes * _TEXT_SHARE.get(self.path.suffix.lower(), 1.0)
        if self.path.suffix.lower() in (".pdf", ".pptx", ".odp", ".ppt"):
            characters = min(characters, _MOST_FROM_BINARY)
        return 0 if self.problem else int(characters / _CHUNK_CHARACTERS) + 1


def find(paths: Iterable[str | Path]) -> Iterator[File]:
    """Yield the files at *paths*, each once; folders are walked in the order of names.

    Hidden files and folders, and folders of packages and caches, are passed over when a folder is walked. A link that
    leads out of the folder is not followed.
    """
    seen: set[str] = set()
    for given in paths:
        shown = Path(given).expanduser()
        path = Path(os.path.abspath(shown))  # noqa: PTH100 - resolve() would follow links
        found = _walk(path, shown) if path.is_dir() else iter([_file(path, str(shown))])
        for file in found:
            if str(file.path) not in seen:
                seen.add(str(file.path))
                yield file


def _walk(root: Path, shown: Path) -> Iterator[File]:
    real = root.resolve()
    failed: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=failed.append):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            # "~$" is the lock that Office leaves beside an open document.
            if name.startswith((".", "~$")) or name.lower() in _SKIPPED_FILES:
                continue
            path = Path(folder, name)
            label = str(shown / path.relative_to(root))
            if path.is_symlink() and (problem := _link_problem(path, real)):
                yield File(path, label, problem=problem)
            else:
                yield _file(path, label)
    for exc in failed:
        path = Path(exc.filename)
        yield File(path, str(shown / path.relative_to(root)),
                   problem=(f"the folder can't be listed ({exc.strerror})", "check its permissions"))  # fmt: skip


def _link_problem(path: Path, root: Path) -> tuple[str, str] | None:
    """Say why a link below *root* is not followed, if so."""
    try:
        inside = path.resolve().is_relative_to(root)
    except (RuntimeError, OSError):  # from Python 3.13 on the latter
        return "it is a link that leads to itself", "mend or remove the link"
    return None if inside else ("it is a link that leads out of the folder", "add its target itself")


def _file(path: Path, shown: str) -> File:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return File(path, shown, problem=("there is no such file", "check its name"))
    except OSError as exc:
        return File(path, shown, problem=(f"it can't be reached ({exc.strerror})", ""))
    if not stat.S_ISREG(facts.st_mode):
        return File(path, shown, problem=("it is not a regular file", ""))
    return File(path, shown, facts.st_size, facts.st_mtime_ns)
