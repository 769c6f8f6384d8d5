"""Compiling the kernels for the CPU they will run on, and loading them.

They are built once, by ``python -m assistant.inference.native`` (``make chat`` and ``make test`` run it), with the
machine's C compiler or, where there is none, with the one in the Python package ``ziglang``. What was built is tried
against torch in a process of its own before it is kept. Nothing is compiled while the assistant runs: a compiler takes
memory that no budget has set aside. A library built for another CPU, or from other source, is not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from assistant.errors import InferenceError

SOURCE = Path(__file__).with_name("kernels.c")
VERSION = 2
"""Of what the functions take; ``kernels.c`` has the same."""
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-shared", "-fPIC")
_LIBRARIES = ("-lm", "-lpthread")
_TIMEOUT_S = 300
_CPU = Path("/proc/cpuinfo")


class KernelsNotBuiltError(InferenceError):
    """The kernels can't be built here; the message says why."""


class NoCompilerError(KernelsNotBuiltError):
    """There is no C compiler here that can build them; another one might."""


@cache
def library() -> ctypes.CDLL | None:
    """Load the kernels that were built for this CPU; None where there are none, or where they are switched off.

    ``ASSISTANT_KERNELS=off`` switches them off. So does ``ONEDNN_MAX_CPU_ISA``, which says that this process should
    compute as an older CPU would.
    """
    if os.environ.get("ASSISTANT_KERNELS", "").lower() in ("off", "0", "no", "false"):
        return None
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in ("", "ALL", "DEFAULT"):
        return None
    return next((found for path in _places() if path.is_file() and (found := opened(path)) is not None), None)


def build() -> Path:
    """Compile the kernels, try them, and keep them; return where. What is there already is kept.

    Raises:
        KernelsNotBuiltError: There is no compiler, this is no such CPU, or what it made is wrong.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise KernelsNotBuiltError(f"they are written for x86-64 CPUs, and this is {platform.machine()}")
    if _cpu() and not {"avx2", "fma", "f16c"} <= set(_cpu()):
        raise KernelsNotBuiltError("this CPU lacks AVX2, FMA or F16C")
    for path in _places():
        if path.is_file() and opened(path) is not None:
            return path
    problems = []
    for command in _compilers():
        try:
            return _built(command)
        except NoCompilerError as exc:
            problems.append(f"{' '.join(command)}: {exc}")
    told = "; ".join(problems) or "there is no C compiler"
    raise NoCompilerError(f"{told} (install gcc or clang, or: pip install ziglang)")


def _built(command: list[str]) -> Path:
    """Compile with *command* into the first place that can be written, and try the result."""
    denied = ""
    for path in _places():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".kernels-", dir=path.parent) as folder:
                made = Path(folder) / path.name
                _run([*command, *_FLAGS, "-o", str(made), str(SOURCE), *_LIBRARIES], NoCompilerError)
                _run([sys.executable, "-m", __package__, "--try", str(made)], KernelsNotBuiltError)
                made.replace(path)
            return path
        except OSError as exc:
            denied = str(exc)
    raise KernelsNotBuiltError(f"no folder to keep them in can be written: {denied}")


def opened(path: Path) -> ctypes.CDLL | None:
    """Load a library and say what its functions take; None when it is none of this version."""
    try:
        found = ctypes.CDLL(str(path))
        if found.kernels_version() != VERSION:
            return None
    except (OSError, AttributeError):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("pool_new", pointer, [number]),
        ("pool_free", None, [pointer]),
        ("scratch_new", pointer, [pointer, pointer, number, number]),
        ("scratch_free", None, [pointer]),
        ("scratch_hidden", pointer, [pointer]),
        ("scratch_bytes", ctypes.c_int64, [pointer]),
        ("step_rows", None, [pointer, pointer, pointer, pointer, number, number, pointer]),
        ("head_row", None, [pointer, pointer, pointer, pointer, pointer]),
        ("read_layer", None, [pointer, pointer, pointer, pointer, pointer, number, number, number, number]),
        ("kernels_use", number, []),
    ):  # fmt: skip
        function: Any = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def described(found: ctypes.CDLL) -> str:
    """Name what the kernels were built for."""
    return ("AVX2", "AVX2 VNNI", "AVX-512 VNNI")[found.kernels_use()]


def _places() -> Iterator[Path]:
    """Where the library may be: beside its source, or in the user's cache where that can't be written."""
    name = f"_kernels-{_digest()}.so"
    yield SOURCE.with_name(name)
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    yield Path(root) / "thimble" / name


@cache
def _digest() -> str:
    """Describe the source, how it is compiled, and the CPU."""
    cpu = " ".join(sorted(_cpu())) or platform.processor()
    return hashlib.sha256(SOURCE.read_bytes() + " ".join((*_FLAGS, cpu)).encode()).hexdigest()[:16]


@cache
def _cpu() -> tuple[str, ...]:
    """Name what this CPU can do; nothing where the system does not say."""
    with suppress(OSError):
        for line in _CPU.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return tuple(line.partition(":")[2].split())
    return ()


def _compilers() -> Iterator[list[str]]:
    """Give the commands that may compile C here, the one that is asked for first."""
    named = os.environ.get("CC", "").split()
    if named and shutil.which(named[0]):
        yield named
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            yield [name]
    if importlib.util.find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "cc"]


def _run(command: list[str], failure: type[KernelsNotBuiltError]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise failure(f"took more than {_TIMEOUT_S} s") from exc
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
        raise failure(told or f"ended with {done.returncode}")
