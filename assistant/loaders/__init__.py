"""Documents into text: one module a format family, run in a child process with limits.

Importing this package loads no parser: those load in the child, each when first needed.
"""

from __future__ import annotations

from .registry import SUPPORTED, Format, is_supported
from .runner import Cancelled, Parser, load

__all__ = ["SUPPORTED", "Cancelled", "Format", "Parser", "is_supported", "load"]
