"""What a user wrote as a model, turned into a place; and the list of what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from assistant.errors import ModelBrokenError, ModelNotFoundError
from .folders import check_folder
from .packaged import PACKAGED, Kind, PackagedModel
from .preparing import is_ready


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
    """A model folder and what it costs."""

    name: str
    kind: Kind
    path: Path
    ready: bool


def resolve(name: str, models_dir: Path, *, kind: Kind = "chat") -> ResolvedModel:
    """Placeholder; see below."""
    raise NotImplementedError


def listed(models_dir: Path) -> list[ListedModel]:
    """Placeholder; see below."""
    raise NotImplementedError
