"""Fixtures shared by all tests: prepared models, and no network but loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from assistant.embedding import Embedder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as TorchWorker sets it; tests import torch first
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def packaged_models() -> Path:
    """Folder of the prepared packaged models (``make models`` makes it)."""
    folder = Path(os.environ.get("THIMBLE_TEST_MODELS", ROOT / "models"))
    if not (folder / "smollm2-135m-instruct").is_dir():
        pytest.fail("the packaged models are not prepared: run `make models` (make test does) first")
    return folder


@pytest.fixture(scope="module")
def embedder(packaged_models: Path) -> Iterator[Embedder]:
    """The packaged embedder, on a worker of its own."""
    from assistant.embedding import load_embedder  # not for the tests that need no model
    from assistant.models import resolve
    from assistant.worker import TorchWorker

    worker = TorchWorker(1)
    loaded = load_embedder(resolve("packaged", packaged_models, kind="embedder"), worker)
    yield loaded
    loaded.close()
    worker.close()


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> object:
        if isinstance(address, tuple) and address and address[0] not in ("127.0.0.1", "localhost", "::1", "0.0.0.0"):
            raise OSError(f"tests may not connect to {address[0]}")
        return connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A memory cgroup limited to 300 MiB, gone after the test; skips where none can be made."""
    folder = Path("/sys/fs/cgroup/memory") / f"thimble-test-{os.getpid()}"
    limit = "memory.limit_in_bytes"
    if not folder.parent.is_dir():
        folder, limit = Path("/sys/fs/cgroup") / folder.name, "memory.max"
    try:
        folder.mkdir()
    except OSError as exc:
        pytest.skip(f"needs root and a memory cgroup: {exc}")
    try:
        try:
            (folder / limit).write_text(str(300 << 20))
        except OSError as exc:
            pytest.skip(f"the memory controller is not to be had here: {exc}")
        yield folder
    finally:
        folder.rmdir()
