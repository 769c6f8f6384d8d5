"""Draw one page of a PDF as PNG, in a process of its own with little of everything: ``python -m`` this, file, page.

PDF files are hostile until proven otherwise; here a bad one costs a picture. Knows nothing of users or documents.
"""

from __future__ import annotations

import contextlib
import io
import resource
import subprocess
import sys
import threading
from pathlib import Path

WIDTH = 900  # pixels
TIMEOUT_S = 20
MAX_BYTES = 1 << 30  # address space
_one_at_a_time = threading.Semaphore(1)


def draw(path: Path, page: int) -> bytes | None:
    """Return a page (from 1) as PNG, or None where it can't be drawn."""
    command = [sys.executable, "-m", "assistant.ui.pdf_page", str(path), str(page)]
    with _one_at_a_time:
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False, cwd=_root())
        except subprocess.TimeoutExpired:
            return None
    return done.stdout if done.returncode == 0 and done.stdout.startswith(b"\x89PNG") else None


def _root() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def _main(path: str, page: str) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_S, TIMEOUT_S))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    shown = document[int(page) - 1]
    width, height = shown.get_size()
    scale = WIDTH / max(width, height / 3, 1)
    buffer = io.BytesIO()
    shown.render(scale=scale).to_pil().save(buffer, format="PNG", optimize=False)
    sys.stdout.buffer.write(buffer.getvalue())


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
