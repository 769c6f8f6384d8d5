"""Build the kernels for this CPU (``python -m assistant.inference.native``), or try a library (``--try file``)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .build import KernelsNotBuiltError, NoCompilerError, build, described, opened

TOLERANCE = 0.03
"""Largest difference from torch's logits, relative to their spread. Rounding activations to 8 bits makes 0.008."""


def main() -> int:
    """Run; return the exit status: 0 built or right, 1 not to be had here or wrong, 2 a C compiler would help."""
    parser = argparse.ArgumentParser(prog="python -m assistant.inference.native", description=__doc__)
    parser.add_argument("--try", dest="tried", type=Path, metavar="FILE", help="compare a library with torch")
    args = parser.parse_args()
    if args.tried:
        return tried(args.tried)
    try:
        path = build()
    except KernelsNotBuiltError as exc:
        sys.stdout.write(f"kernels not built, answers are written by torch alone and slower: {exc}\n")
        return 2 if isinstance(exc, NoCompilerError) else 1
    found = opened(path)
    assert found is not None
    sys.stdout.write(f"kernels ready ({described(found)})\n")
    return 0


def tried(path: Path) -> int:
    """Compare a library with torch."""
    from .trial import differences

    found = opened(path)
    if found is None:
        sys.stderr.write(f"error: {path} can't be loaded\n")
        return 1
    worst = max(differences(found))
    if not worst <= TOLERANCE:  # NaN is none, too
        sys.stderr.write(f"error: its logits are {worst:.3f} off those of torch\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
