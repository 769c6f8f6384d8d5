"""What a sentence-transformers folder says about itself, and whether our own forward pass can run it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from assistant.models import check_folder, weight_files

_EDGE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class EmbedderFolder:
    """Facts about an embedding model's folder.

    Attributes:
        config: Its ``config.json``.
        pooling: How token vectors become one, where that is known.
        light: Whether ``BertForward`` runs it; else sentence-transformers does.
        max_tokens: Longest text it reads, special tokens included.
        fingerprint: Same for the same tokenizer and weights, wherever they lie.
    """

    path: Path
    config: Mapping[str, Any]
    pooling: Literal["mean", "cls", "other"]
    light: bool
    max_tokens: int
    fingerprint: str


def read_folder(path: Path) -> EmbedderFolder:
    """Read the folder's own description.

    Raises:
        ModelBrokenError: It is not whole.
    """
    config = check_folder(path).config
    modules = [str(item.get("type", "")).rsplit(".", 1)[-1] for item in _list(path / "modules.json")]
    pooling = _pooling(path, modules)
    weights = weight_files(path)
    light = (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and modules in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        and pooling != "other"
        and not _dict(path / "config_sentence_transformers.json").get("prompts")
        and [item.name for item in weights] == ["model.safetensors"]
        and (path / "tokenizer.json").is_file()
    )
    return EmbedderFolder(path, config, pooling, light, _max_tokens(path, config), _fingerprint(path, weights))


def _pooling(path: Path, modules: list[str]) -> Literal["mean", "cls", "other"]:
    if "Pooling" not in modules:
        return "other"
    place = str(_list(path / "modules.json")[modules.index("Pooling")].get("path", "1_Pooling"))
    said = _dict(path / place / "config.json")
    mode = said.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, on in said.items() if key.startswith("pooling_mode_") and on is True
    ]  # fmt: skip
    if modes == ["mean"]:
        return "mean"
    return "cls" if modes == ["cls"] else "other"


def _max_tokens(path: Path, config: Mapping[str, Any]) -> int:
    said = [
        _dict(path / "sentence_bert_config.json").get("max_seq_length"),
        config.get("max_position_embeddings"),
        _dict(path / "tokenizer_config.json").get("model_max_length"),
    ]
    return min((int(value) for value in said if isinstance(value, (int, float)) and value > 0), default=512)


def _fingerprint(path: Path, weights: list[Path]) -> str:
    """Hash the tokenizer, and of each weights file its size and both ends: cheap, and different for any other model."""
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).is_file():
            digest.update((path / name).read_bytes())
            break
    for file in weights:
        size = file.stat().st_size
        with file.open("rb") as opened:
            digest.update(f"{size} ".encode() + opened.read(_EDGE_BYTES))
            opened.seek(max(0, size - _EDGE_BYTES))
            digest.update(opened.read())
    return digest.hexdigest()[:16]


def _dict(path: Path) -> dict[str, Any]:
    found = _json(path)
    return found if isinstance(found, dict) else {}


def _list(path: Path) -> list[dict[str, Any]]:
    found = _json(path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
