"""What makes the start short: no garbage collection while modules load, and less of what nobody here calls.

Knows nothing about what is loaded.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_lock = threading.Lock()
_waiting = 0  # blocks of undisturbed() that are open
_was_on = False

_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Collect no garbage meanwhile: what libraries make while they load stays, and to look through it takes a second.

    Blocks may be nested and overlap, in any threads; the last to end switches the collector back on, if it was on.
    """
    global _waiting, _was_on
    with _lock:
        if not _waiting:
            _was_on = gc.isenabled()
            gc.disable()
        _waiting += 1
    try:
        yield
    finally:
        with _lock:
            _waiting -= 1
            if not _waiting and _was_on:
                gc.enable()


def load_chroma() -> ModuleType:
    """Import Chroma; the exporter for its traces, and gRPC with it, only when somebody has Chroma export traces.

    Chroma imports both whether or not they are used: 11 MiB of RAM. What stands for the exporter meanwhile brings the
    real one when it is called, and is gone for everybody else in this process.
    """
    if "chromadb" in sys.modules:
        return importlib.import_module("chromadb")
    with undisturbed():
        spare = _EXPORTER not in sys.modules
        if spare:
            sys.modules[_EXPORTER] = _Exporter(_EXPORTER)
        try:
            return importlib.import_module("chromadb")
        finally:
            if spare:
                sys.modules.pop(_EXPORTER, None)


class _Exporter(ModuleType):
    """Stands for the exporter's module."""

    @staticmethod
    def OTLPSpanExporter(*args: Any, **options: Any) -> Any:
        return importlib.import_module(_EXPORTER).OTLPSpanExporter(*args, **options)
