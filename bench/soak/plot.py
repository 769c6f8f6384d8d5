"""Draw the RSS of several soaks in one plot: ``python -m bench.soak.plot docs/soak.svg ours=FILE plain=FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot


def main() -> None:
    """Draw what the arguments name."""
    target, *curves = sys.argv[1:]
    mpl.rcParams["svg.hashsalt"] = "thimble"  # the same curves give the same file
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for curve in curves:
        name, _, path = curve.partition("=")
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if "rss" in row]
        (line,) = axes.plot([row["turn"] for row in rows], [row["rss"] / 2**20 for row in rows], label=f"{name}, RSS")
        axes.plot([row["turn"] for row in rows], [row["anonymous"] / 2**20 for row in rows], "--",
                  color=line.get_color(), label=f"{name}, anonymous")  # fmt: skip
    axes.set(xlabel="turn", ylabel="MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
