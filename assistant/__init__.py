"""Thimble: a chat assistant over a person's own documents, inside a memory budget its user sets.

Importing this package loads nothing heavy: no torch, no Chroma, no Gradio. They load when first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import AssistantError
from .settings import Settings

if TYPE_CHECKING:
    from .core import Assistant

__version__ = "0.1.0"
__all__ = ["Assistant", "AssistantError", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    """Load ``Assistant`` when first asked for (PEP 562)."""
    if name == "Assistant":
        from .starting import undisturbed

        with undisturbed():
            from .core import Assistant

        return Assistant
    raise AttributeError(f"module 'assistant' has no attribute {name!r}")
