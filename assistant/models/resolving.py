"""What a user wrote as a model, turned into a place; and the list of what is there."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from assistant.errors import ModelBrokenError, ModelError, ModelNotFoundError
from assistant.units import format_bytes

from .folders import ModelFolder, check_folder, fault
from .packaged import PACKAGED, Kind, PackagedModel
from .preparing import is_ready

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_SKIP = ["onnx/*", "openvino/*", "original/*", "*.onnx", "*.gguf"]
_PREPARE = "run `make models` or `python -m assistant models prepare`"
_CHOICES: dict[Kind, str] = {
    "chat": "`packaged`, a model folder, a hub id (owner/name), an OpenAI-compatible URL, or `none`",
    "embedder": "`packaged`, a sentence-transformers folder or a hub id (owner/name)",
}


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Where a model is.

    Attributes:
        kind: ``folder``: *path* is a whole Hugging Face folder; ``url``: a server; ``none``: no model.
        name: For people and for receipts.
    """

    kind: Literal["folder", "url", "none"]
    name: str
    path: Path | None = None
    url: str = ""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model folder and what it costs.

    Attributes:
        disk_bytes: Of the folder.
        weights_bytes: Mapped when loaded: counted in RSS as far as touched, droppable by the kernel.
        kv_bytes_per_token: Of a chat model, allocated a token of context while it answers.
        fault: What is wrong with it; empty when it is whole.
    """

    name: str
    kind: Kind
    path: Path
    ready: bool
    disk_bytes: int = 0
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    context_tokens: int = 0
    fault: str = ""

    @property
    def ram(self) -> str:
        """What it takes in RAM, for people."""
        mapped = f"{format_bytes(self.weights_bytes)} of RAM for its weights (memory-mapped)"
        if not self.kv_bytes_per_token:
            return mapped
        context = min(self.context_tokens, 2048)
        return f"{mapped} and {format_bytes(self.kv_bytes_per_token * context)} at {context:,} tokens of context"


def resolve(name: str, models_dir: Path, *, kind: Kind = "chat") -> ResolvedModel:
    """Find the model that a setting names.

    Only a hub id downloads anything: naming it is the user's wish. One that is in the local cache needs no network, and
    with ``HF_HUB_OFFLINE`` set the network is not tried.

    Args:
        name: What the user wrote.
        models_dir: Where prepared models are; a folder in it may be named without its path.
        kind: What it shall do.

    Raises:
        ModelNotFoundError: Nothing answers to that name; says what was tried and what would work.
        ModelBrokenError: It is there but not whole, or not a model of this kind.
    """
    text = name.strip()
    if text == "none" and kind == "chat":
        return ResolvedModel("none", "none")
    if text.startswith(("http://", "https://")):
        return _url(text, kind)
    packaged = next((m for m in PACKAGED if m.kind == kind and text in ("packaged", m.name)), None)
    if packaged is not None:
        return _packaged(packaged, models_dir)
    for folder in (Path(text).expanduser(), models_dir / text):
        if text and folder.is_dir():
            return _folder(folder.resolve(), kind)
    if Path(text).expanduser().is_file():
        raise ModelNotFoundError(
            f"{text} is a file, and a {kind} model is a Hugging Face folder (config.json, tokenizer.json, "
            "model.safetensors); a GGUF file can be served by llama.cpp or Ollama and given as their URL."
        )
    if _HUB_ID.fullmatch(text):
        return _folder(_from_hub(text), kind, name=text)
    known = ["packaged", *(("none",) if kind == "chat" else ()), *(found.name for found in _folders_in(models_dir))]
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it takes {_CHOICES[kind]}."
    raise ModelNotFoundError(f"There is no {kind} model {text!r}, neither as a folder nor in {models_dir}; {hint}")


def listed(models_dir: Path) -> list[ListedModel]:
    """Return the packaged models, prepared or not, then every other model folder in *models_dir*."""
    rows = [_row(models_dir / model.name, model.kind, model) for model in PACKAGED]
    names = {row.name for row in rows}
    rows.extend(
        _row(folder, "embedder" if (folder / "modules.json").is_file() else "chat", None)
        for folder in _folders_in(models_dir)
        if folder.name not in names
    )
    return rows


def _url(text: str, kind: Kind) -> ResolvedModel:
    parts = urlsplit(text)
    if kind == "embedder":
        raise ModelNotFoundError(f"{text} is a URL, and the embedder runs in this process; it takes {_CHOICES[kind]}.")
    if not parts.hostname:
        raise ModelNotFoundError(f"{text} has no host; an OpenAI-compatible URL looks like http://localhost:11434/v1.")
    return ResolvedModel("url", parts.hostname, url=text.rstrip("/"))


def _packaged(model: PackagedModel, models_dir: Path) -> ResolvedModel:
    folder = models_dir / model.name
    if not folder.is_dir():
        raise ModelNotFoundError(f"The packaged {model.kind} model is not prepared in {models_dir}; {_PREPARE}.")
    if not is_ready(models_dir, model):
        wrong = fault(folder) or "was made by another version of Thimble"
        raise ModelBrokenError(f"The model folder {folder} {wrong}; {_PREPARE} and it is made again.")
    return ResolvedModel("folder", model.name, folder)


def _folder(folder: Path, kind: Kind, *, name: str = "") -> ResolvedModel:
    found = check_folder(folder)
    architectures = [str(item) for item in found.config.get("architectures") or ()]
    generates = any(item.endswith(("ForCausalLM", "ForConditionalGeneration")) for item in architectures)
    if kind == "chat" and not generates:
        what = ", ".join(architectures) or f"a {found.config.get('model_type', 'nameless')} model"
        raise ModelBrokenError(f"{folder} holds {what}, which does not write text; the chat model must be a causal LM.")
    return ResolvedModel("folder", name or folder.name, folder)


def _from_hub(hub_id: str) -> Path:
    """Return the snapshot of a hub id: from the local cache, else downloaded into it."""
    import httpx  # what huggingface_hub talks through; both load only when a hub id was asked for
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {"allow_patterns": _HUB_FILES, "ignore_patterns": _HUB_SKIP}
    try:
        return Path(snapshot_download(hub_id, local_files_only=True, **options))
    except (HFValidationError, LocalEntryNotFoundError):
        pass
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelNotFoundError(
            f"{hub_id} is neither a folder nor in the local hub cache, and HF_HUB_OFFLINE forbids downloading it; "
            "unset that, or name a folder or `packaged`."
        )
    try:
        return Path(snapshot_download(hub_id, etag_timeout=10, max_workers=2, **options))
    except HfHubHTTPError as exc:
        status = int(getattr(exc.response, "status_code", 0))
        why = {401: "the hub knows no such public model", 403: "the hub wants a login for it",
               404: "the hub knows no such model"}.get(status, "the hub refused")  # fmt: skip
        raise ModelNotFoundError(
            f"{hub_id} is neither a folder nor in the local hub cache, and {why}; check its name, or name a folder."
        ) from exc
    except (HFValidationError, LocalEntryNotFoundError, OSError, httpx.HTTPError) as exc:
        raise ModelNotFoundError(
            f"{hub_id} is neither a folder nor in the local hub cache, and the hub can't be reached to download it; "
            "connect to the internet once, or name a folder or `packaged`."
        ) from exc


def _folders_in(models_dir: Path) -> Iterator[Path]:
    if models_dir.is_dir():
        yield from sorted(
            path for path in models_dir.iterdir() if (path / "config.json").is_file() and path.name[0] != "."
        )


def _row(folder: Path, kind: Kind, packaged: PackagedModel | None) -> ListedModel:
    name = folder.name
    if not folder.is_dir():
        return ListedModel(name, kind, folder, ready=False, fault="is not prepared")
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        found = check_folder(folder)
    except ModelError as exc:
        return ListedModel(name, kind, folder, ready=False, disk_bytes=disk, fault=str(exc))
    ready = packaged is None or is_ready(folder.parent, packaged)
    if kind == "embedder":
        return ListedModel(name, kind, folder, ready, disk, min(found.weights_bytes, 2 * found.parameters))
    return ListedModel(
        name, kind, folder, ready, disk, found.weights_bytes, _kv_bytes_per_token(found),
        int(found.config.get("max_position_embeddings", 2048)),
    )  # fmt: skip


def _kv_bytes_per_token(found: ModelFolder) -> int:
    """Bytes of keys and values a token, in bf16."""
    config = found.config
    try:
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        return 2 * 2 * int(config["num_hidden_layers"]) * int(config.get("num_key_value_heads") or heads) * width
    except (KeyError, TypeError, ValueError):
        return 0
