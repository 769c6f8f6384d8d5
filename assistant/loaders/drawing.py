"""What Office files draw rather than write: charts, diagrams and text boxes (DrawingML)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lxml import etree

from assistant.records import Segment

from .archive import local
from .base import Table, one_line, row_segments, squeeze, text_segments


def paragraphs(root: etree._Element) -> str:
    """Return the paragraphs below *root*, one a line."""
    lines = []
    for node in root.iter():
        if local(node) != "p":
            continue
        parts = []
        for run in node.iter():
            name = local(run)
            if name == "t":
                parts.append(run.text or "")
            elif name in ("br", "tab"):
                parts.append("\n" if name == "br" else " ")
        lines.append("".join(parts))
    return "\n".join(lines)


def chart(root: etree._Element, **facts: Any) -> Iterator[Segment]:
    """Give a chart's titles, then its values as the table they were drawn from."""
    titles = squeeze(paragraphs(root))
    if titles:
        yield from text_segments(titles, **facts)
    series = [_series(node) for node in root.iter() if local(node) == "ser"]
    table, begun = Table(), False
    table.add(["", *(name for name, _, _ in series)], header=True)
    labels = max((labels for _, labels, _ in series), key=len, default=[])
    length = max((len(values) for _, _, values in series), default=0)
    for index in range(length):
        label = labels[index] if index < len(labels) else ""
        cells = [label, *(values[index] if index < len(values) else "" for _, _, values in series)]
        for segment in row_segments(table.add(cells), begun=begun, **facts):
            begun = True
            yield segment


def _series(node: etree._Element) -> tuple[str, list[str], list[str]]:
    """Return the name, the labels and the values of a chart's series, as the file last showed them."""
    found: dict[str, list[str]] = {}
    for child in node:
        name = local(child)
        if name in ("tx", "cat", "xVal", "val", "yVal", "bubbleSize"):
            found[name] = [one_line(value.text or "") for value in child.iter() if local(value) == "v"]
    label = " ".join(found.get("tx", []))
    return label, found.get("cat") or found.get("xVal") or [], found.get("val") or found.get("yVal") or []
