"""Documents into text: one module a format family, run in a child process with limits.

Importing this package loads no parser: those load in the child, each when first needed.
"""

from __future__ import annotations

from .folders import File, find
from .registry import SUPPORTED, Format, is_supported
from .runner import Cancelled, Parser, load

__all__ = ["SUPPORTED", "Cancelled", "File", "Format", "Parser", "find", "is_supported", "load"]
