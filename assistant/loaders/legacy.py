"""Word and PowerPoint files of before 2007, through whichever converter is installed: antiword, catdoc, LibreOffice."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from assistant.errors import DamagedDocumentError, ParserLimitError, UnsupportedFormatError
from assistant.records import Segment

from . import locked, registry
from .base import Source, clean, squeeze, text_segments

_TIMEOUT_S = 50
_PLAIN = {".doc": (("antiword", "-m", "UTF-8.txt", "-w", "0"), ("catdoc", "-d", "utf-8", "-w")),
          ".ppt": (("catppt", "-d", "utf-8"),)}  # fmt: skip


def load(source: Source) -> Iterator[Segment]:
    """Load a .doc or .ppt file.

    Raises:
        UnsupportedFormatError: No converter is installed.
        DamagedDocumentError: The converter can't read it.
        ParserLimitError: The converter takes too long.
    """
    office = shutil.which("soffice") or shutil.which("libreoffice")
    kind = ".ppt" if source.path.suffix.lower() in (".ppt", ".pps", ".pot") else ".doc"
    tools = [tool for tool in _PLAIN[kind] if shutil.which(tool[0])]
    if not office and not tools:
        wanted = " or ".join(["LibreOffice", *(tool[0] for tool in _PLAIN[kind])])
        raise UnsupportedFormatError(source.name, f"{kind} files of before 2007 need a converter",
                                     f"install {wanted}, or save it as {kind}x")  # fmt: skip
    if locked.is_locked(source):
        yield from locked.load(source)
        return
    for tool in tools:
        text = squeeze_blocks(_run([*tool, str(source.path)], source))
        if text:
            for block in text:
                yield from text_segments(block)
            return
    if office:
        yield from _through_office(office, kind, source)
        return
    raise DamagedDocumentError(source.name, f"it can't be read as {kind}", f"open it and save it as {kind}x")


def squeeze_blocks(text: str) -> list[str]:
    """Return the paragraphs of a converter's plain text, without its placeholders of pictures."""
    return [block for part in clean(text).replace("[pic]", "").split("\n\n") if (block := squeeze(part))]


def _through_office(office: str, kind: str, source: Source) -> Iterator[Segment]:
    with tempfile.TemporaryDirectory(prefix="thimble-") as folder:
        path = Path(folder, source.path.name)
        if source.path.is_symlink():  # LibreOffice wants the file itself
            shutil.copyfile(source.path, path)
        else:
            path = source.path
        profile = f"-env:UserInstallation=file://{folder}/profile"
        _run(
            [office, profile, "--headless", "--convert-to", f"{kind[1:]}x", "--outdir", folder, str(path)],
            source,
        )
        found = list(Path(folder).glob(f"*{kind}x"))
        if not found:
            raise DamagedDocumentError(source.name, f"it can't be read as {kind}", f"open it and save it as {kind}x")
        yield from registry.segments(replace(source, path=found[0]))


def _run(command: list[str], source: Source) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                              timeout=_TIMEOUT_S, check=False, env={**os.environ})  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise ParserLimitError(source.name, f"its converter took over {_TIMEOUT_S} s", "convert it yourself") from exc
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
