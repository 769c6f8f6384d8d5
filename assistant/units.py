"""Bytes and seconds as people write them. Knows nothing about what they measure."""

from __future__ import annotations

import re

_FACTORS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*\Z")


def parse_bytes(text: str | int) -> int:
    """Read a size such as ``"1GiB"``, ``"1.5 GB"`` or ``1048576``.

    ``GB`` is 10^9 bytes and ``GiB`` 2^30, as IEC 80000-13 has it; a lone letter (``1G``) is binary, as in cgroups,
    docker and the JVM.

    Raises:
        ValueError: Not a size, or a negative one. The message says what would be one.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} is negative; a size is a positive number of bytes, such as 1073741824 or 1GiB")
        return text
    match = _SIZE.match(str(text))
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write bytes or a unit: 1073741824, 1GiB, 1.5GB or 512MiB")
    value = float(match[1]) * factor if "." in match[1] else int(match[1]) * factor
    if value < 0:
        raise ValueError(f"{text!r} is negative; a size is a positive number of bytes, such as 1GiB")
    return int(value)


def format_bytes(count: int) -> str:
    """Write a size for people: ``"612 MiB"``, ``"1.5 GiB"``."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit in ("bytes", "KiB", "MiB") else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: ``"0.4 s"``, ``"12 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
