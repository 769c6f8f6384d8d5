"""Is a model folder whole? Asked at each start, so it costs a few stats and headers, never a read of the weights.

A safetensors file says in its header how long it must be; a folder that we prepared lists its files in a manifest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.errors import ModelBrokenError

MANIFEST = "manifest.json"
_MAX_HEADER = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a whole folder holds.

    Attributes:
        config: Its ``config.json``.
        weights_bytes: Of all weights files.
        parameters: Numbers in the weights.
    """

    path: Path
    config: Mapping[str, Any]
    weights_bytes: int
    parameters: int


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Record every file's size, with *facts* about where they come from."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": sizes}, indent=2), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest, or None where there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def fault(folder: Path) -> str:
    """Say what is wrong with a folder that we prepared; empty when all its files are there at their full size."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "has no readable manifest"
    for name, size in manifest.get("files", {}).items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"lacks {name}"
        if found != size:
            return f"has {name} of {found} bytes instead of {size}"
    return ""


def check_folder(folder: Path) -> ModelFolder:
    """Look whether a Hugging Face model folder is whole.

    Raises:
        ModelBrokenError: A file is missing, truncated or no JSON; says which.
    """
    if (folder / MANIFEST).is_file() and (wrong := fault(folder)):
        raise ModelBrokenError(f"The model folder {folder} {wrong}; prepare or download it again.")
    config = _json(folder, "config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")):
        raise ModelBrokenError(f"The model folder {folder} has no tokenizer (tokenizer.json); download it again.")
    size = parameters = 0
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            parameters += _check_safetensors(path)
        size += path.stat().st_size
    return ModelFolder(folder, config, size, parameters)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights, in order.

    Raises:
        ModelBrokenError: There are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(folder, index.name).get("weight_map", {}).values()))
        for name in names:
            if not (folder / name).is_file():
                raise ModelBrokenError(f"The model folder {folder} lacks {name}; download it again.")
        return [folder / name for name in names]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise ModelBrokenError(
        f"The model folder {folder} has no weights (model.safetensors); it is a transformers folder that is wanted."
    )


def _check_safetensors(path: Path) -> int:
    """Compare a file's length with what its header says; return how many numbers it holds."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER, size):
                raise ValueError
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        spans = [spec["data_offsets"] for spec in header.values()]
        numbers = 0
        for spec in header.values():
            count = 1
            for n in spec["shape"]:
                count *= n
            numbers += count
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise ModelBrokenError(f"{path} is not a whole safetensors file; download it again.") from exc
    wanted = 8 + length + max((end for _, end in spans), default=0)
    if size != wanted:
        raise ModelBrokenError(f"{path} has {size} bytes and should have {wanted}; it is cut off, download it again.")
    return numbers


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelBrokenError(f"The model folder {folder} has no {name}; download it again.") from None
    except (OSError, ValueError) as exc:
        raise ModelBrokenError(f"{folder / name} can't be read as JSON; download the model again.") from exc
    if not isinstance(found, dict):
        raise ModelBrokenError(f"{folder / name} is not a JSON object; download the model again.")
    return found
