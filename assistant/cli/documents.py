"""``ingest`` and ``documents``: what is in the index."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import asdict
from datetime import datetime

from assistant.core import Assistant
from assistant.records import DocumentInfo, IngestProgress, IngestReport
from assistant.settings import Settings
from assistant.units import format_bytes, format_seconds

_REDRAW_S = 0.1


def ingest(settings: Settings, args: argparse.Namespace) -> int:
    """Read files and folders into the index; Ctrl+C stops after the current batch and keeps what is in."""
    with Assistant(settings) as assistant:
        while True:
            report = _ingest_once(assistant, args)
            _print_report(report, as_json=args.json)
            if args.watch is None or report.cancelled:
                return 130 if report.cancelled else 1 if report.refused and not _kept(report) else 0
            time.sleep(max(args.watch, 1.0))


def documents(settings: Settings, args: argparse.Namespace) -> int:
    """Print the documents with their size, chunks and date, and why refused ones were."""
    with Assistant(settings) as assistant:
        found = assistant.documents()
    if not found:
        print("There are no documents. `python -m assistant ingest samples` adds the samples.")
        return 0
    width = min(48, max(len(document.name) for document in found))
    for document in found:
        print(_line(document, width))
    return 0


def remove(settings: Settings, args: argparse.Namespace) -> int:
    """Remove documents from the index; the files themselves stay."""
    with Assistant(settings) as assistant:
        for name in args.names:
            document = assistant.remove_document(name)
            print(f"removed {document.name} ({document.chunk_count} chunks)")
    return 0


def check(settings: Settings, args: argparse.Namespace) -> int:
    """Hold the vectors, the text and the lexical index against each other, and mend them if asked to."""
    with Assistant(settings) as assistant:
        report = assistant.check_index(repair=args.repair)
    print(f"{report.documents} documents, {report.chunks} chunks, {report.vectors} vectors")
    for problem in report.problems:
        print(f"! {problem}")
    if report.problems and not args.repair:
        print("`python -m assistant documents check --repair` mends this.")
    return 0 if report.healthy else 1


def compact(settings: Settings, args: argparse.Namespace) -> int:
    """Give the disk space of removed documents back."""
    with Assistant(settings) as assistant:
        freed = assistant.compact_index()
    print(f"gave back {format_bytes(freed)}")
    return 0


def _ingest_once(assistant: Assistant, args: argparse.Namespace) -> IngestReport:
    """Run the ingest in a thread, so that Ctrl+C can ask it to stop at a batch's end."""
    cancel, done, bar = threading.Event(), threading.Event(), _Bar(quiet=args.json)
    result: list[IngestReport] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            result.append(
                assistant.ingest(
                    args.paths, on_progress=bar, cancel=cancel, session_id=args.session, passwords=args.password
                )
            )
        except BaseException as exc:  # noqa: BLE001 - raised again below, in the foreground
            errors.append(exc)
        finally:
            done.set()

    thread = threading.Thread(target=work, name="ingest")
    thread.start()
    while not done.is_set():
        try:
            done.wait(0.2)
        except KeyboardInterrupt:
            cancel.set()
            print("\nstopping after this batch; what is in stays", file=sys.stderr)
    thread.join()
    bar.close()
    if errors:
        raise errors[0]
    return result[0]


class _Bar:
    """A progress line on a terminal; a line a file elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._live = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._drawn = 0.0

    def __call__(self, progress: IngestProgress) -> None:
        """Show how far it is."""
        if self._quiet:
            return
        if progress.outcome and (progress.outcome != "unchanged" or not self._live):
            reason = f": {progress.reason}" if progress.reason else ""
            self._clear()
            print(f"{progress.outcome:9} {progress.file}{reason}", file=sys.stderr)
        now = time.monotonic()
        if self._live and (now - self._drawn > _REDRAW_S or progress.outcome):
            self._drawn = now
            share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 1.0
            left = f", {format_seconds(progress.remaining_s)} left" if progress.remaining_s is not None else ""
            filled = "█" * round(share * 24)
            print(
                f"\r\033[K{filled:░<24} {share:4.0%}  {progress.files_done}/{progress.files_total} files, "
                f"{progress.chunks_done} chunks, {progress.chunks_per_s:.0f}/s{left}",
                end="", file=sys.stderr, flush=True,
            )  # fmt: skip

    def close(self) -> None:
        """End the line."""
        self._clear()

    def _clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _print_report(report: IngestReport, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False, indent=2))
        return
    if not (report.added or report.updated or report.refused) and report.unchanged:
        print(f"Nothing to do: all {len(report.unchanged)} files are in the index, unchanged.")
        return
    counts = [f"{len(report.added)} added", f"{len(report.updated)} updated", f"{len(report.unchanged)} unchanged"]
    if report.refused:
        counts.append(f"{len(report.refused)} refused")
    print(
        f"{', '.join(counts)}; {report.chunks_embedded} chunks embedded, {report.chunks_reused} reused, "
        f"in {format_seconds(report.seconds)}{'; stopped before the end' if report.cancelled else ''}."
    )


def _kept(report: IngestReport) -> bool:
    return bool(report.added or report.updated or report.unchanged)


def _line(document: DocumentInfo, width: int) -> str:
    date = datetime.fromtimestamp(document.added_at).strftime("%Y-%m-%d")
    size = format_bytes(document.size_bytes)
    head = f"{document.name[:width]:{width}}  {size:>10}  {document.chunk_count:>6} chunks  {date}"
    if document.status == "refused":
        return f"{head}  refused: {document.reason}"
    return head if document.status == "ready" else f"{head}  not finished; ingest it again to go on"
