"""Safetensors files, mapped into memory: a tensor is a view of the file, its pages are clean and the kernel's.

Knows the file format (an 8-byte length, a JSON header, the bytes) and nothing about models.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from assistant.errors import ModelBrokenError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


class TensorFile:
    """One mapped safetensors file.

    Raises:
        ModelBrokenError: It is missing, truncated or no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A private mapping: torch warns about buffers it may not write, and nobody writes.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as exc:
            raise ModelBrokenError(f"{path.name} of the model in {path.parent} can't be read: {exc}.") from exc
        try:
            (length,) = struct.unpack_from("<Q", self._map, 0)
            header = json.loads(self._map[8 : 8 + length])
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self._base = 8 + length
            self._entries: dict[str, Any] = header
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (struct.error, ValueError, KeyError, TypeError, UnicodeDecodeError) as exc:
            raise ModelBrokenError(f"{path} is no safetensors file: {exc}.") from exc
        if size != self._base + end:
            raise ModelBrokenError(
                f"{path} is truncated: it has {size} bytes and should have {self._base + end}; fetch the model again."
            )

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> Iterable[str]:
        """Names of the tensors."""
        return list(self._entries)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as a view of the file."""
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        shape = entry["shape"]
        if begin == end:
            return torch.empty(shape, dtype=_DTYPES[entry["dtype"]])
        count = math.prod(shape)
        flat = torch.frombuffer(self._map, dtype=_DTYPES[entry["dtype"]], count=count, offset=self._base + begin)
        return flat.reshape(shape)

    def offset(self, name: str) -> int:
        """Say at which byte of the file a tensor begins."""
        begin: int = self._entries[name]["data_offsets"][0]
        return int(self._base) + begin

    def drop(self, names: Iterable[str]) -> None:
        """Take the pages of these tensors out of this process; touching them maps them again."""
        if not hasattr(self._map, "madvise"):  # pragma: no cover - not on Windows
            return
        page = mmap.PAGESIZE
        for name in names:
            begin, end = (self._base + offset for offset in self._entries[name]["data_offsets"])
            begin -= begin % page
            with contextlib.suppress(OSError, ValueError):
                self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of these tensors in the file."""
        return sum(self._entries[name]["data_offsets"][1] - self._entries[name]["data_offsets"][0] for name in names)


class TensorFolder:
    """The tensors of a model folder: ``model.safetensors``, or shards with an index.

    Raises:
        ModelBrokenError: Files are missing or truncated.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as exc:
                raise ModelBrokenError(f"{index} is damaged: {exc}.") from exc
        else:
            names = ["model.safetensors"]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelBrokenError(f"The model folder {folder} lacks {', '.join(missing)}.")
        self.folder = folder
        self.files = [TensorFile(folder / name) for name in names]
        self._where = {name: file for file in self.files for name in file.names()}

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as a view of its file.

        Raises:
            ModelBrokenError: There is none of that name.
        """
        if name not in self._where:
            raise ModelBrokenError(f"The model in {self.folder} lacks the tensor {name}.")
        return self._where[name].tensor(name)

    def drop(self, names: Iterable[str]) -> None:
        """Take the pages of these tensors out of this process; touching them maps them again."""
        for name in names:
            self._where[name].drop((name,))

    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(file.bytes_of(file.names()) for file in self.files)
