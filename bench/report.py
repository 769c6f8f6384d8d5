"""What benchmarks share: their arguments, their table for people and their lines for programs."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the median of its runs, with their spread. Our arm is ``thimble``."""

    bench: str
    set: str
    arm: str
    metric: str
    value: float
    unit: str
    runs: int
    min: float
    max: float


class Report:
    """Collects rows, then prints them and writes them.

    Args:
        bench: Name of the benchmark.
        json_path: Where to write one object a line; None writes none.
    """

    def __init__(self, bench: str, json_path: Path | None = None) -> None:
        self.bench = bench
        self.json_path = json_path
        self.rows: list[Row] = []

    def add(self, set_name: str, arm: str, metric: str, values: float | Sequence[float], unit: str = "") -> Row:
        """Add a figure; several values are runs of the same thing, and their median is the figure."""
        runs = [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]
        row = Row(self.bench, set_name, arm, metric, statistics.median(runs), unit, len(runs), min(runs), max(runs))
        self.rows.append(row)
        return row

    def close(self) -> None:
        """Print the table: a line a set and arm, a column a metric. Then write the JSON lines."""
        for set_name in dict.fromkeys(row.set for row in self.rows):
            rows = [row for row in self.rows if row.set == set_name]
            metrics = list(dict.fromkeys((row.metric, row.unit) for row in rows))
            head = ["arm"] + [f"{metric} ({unit})" if unit else metric for metric, unit in metrics]
            lines = [head]
            for arm in dict.fromkeys(row.arm for row in rows):
                found = {row.metric: row for row in rows if row.arm == arm}
                lines.append([arm] + [_cell(found.get(metric)) for metric, _ in metrics])
            widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
            sys.stdout.write(f"\n{self.bench}: {set_name}\n")
            for line in lines:
                cells = [line[0].ljust(widths[0])]
                cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
                sys.stdout.write("  " + "  ".join(cells) + "\n")
        sys.stdout.flush()
        if self.json_path is not None:
            text = "".join(json.dumps(asdict(row)) + "\n" for row in self.rows)
            self.json_path.write_text(text, encoding="utf-8")


def arguments(doc: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes: ``--json``, and ``--data`` where it reads evaluation data."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write one object a figure")
    if data:
        parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the evaluation data")
    return parser


def require_data(folder: Path, *names: str) -> None:
    """End with one sentence when the evaluation data is not there."""
    for name in names:
        if not (folder / name).exists():
            raise SystemExit(f"{folder / name} is not there: the evaluation data is not part of this repository.")


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    digits = 3 if abs(row.value) < 10 else 1
    spread = f" [{row.min:.{digits}f}-{row.max:.{digits}f}]" if row.runs > 1 else ""
    return f"{row.value:.{digits}f}{spread}"
