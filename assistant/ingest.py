"""Documents into the index: read in a child process, chunked, embedded in batches, written as they come.

Doing it twice adds nothing: an unchanged file costs a stat, a touched one a hash, an edited one the chunks that are
new. What was written stays when an ingest breaks off, and the next one goes on from there. Knows no format and no
database: it drives a parser, an embedder and an index.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chunking import split
from .errors import DocumentError, DocumentTooLargeError, EmptyDocumentError
from .loaders import Cancelled, File, Parser, find
from .records import SHARED, Chunk, DocumentInfo, IngestProgress, IngestReport
from .settings import Settings
from .units import format_bytes

if TYPE_CHECKING:
    from .embedding import Embedder
    from .index import Index

BATCH_CHUNKS = 96  # sorted by length within the embedder; more only take RAM
_KEPT_BATCH = 500
_CERTAIN_S = 1.0  # seconds of work before a remaining time is shown
_HASH_BYTES = 1 << 20
_MORE_ROOM = 1.25  # times the RAM its parser had makes a file that was refused worth another try


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an ingest would take, from names and sizes alone."""

    files: int
    size_bytes: int
    chunks: int


class Ingestor:
    """Reads files into an index. Use it from one thread at a time; a second call waits for the first.

    Args:
        index: Where chunks and vectors go.
        embedder: Makes the vectors, and counts tokens.
        settings: Limits of files and parsers.
        check: Asked before an ingest with the number of chunks expected; raises when the index would not fit in RAM.
        admit: Asked before each batch with the number of its chunks and the bytes that its parser has; raises or waits
            when they do not fit.
    """

    def __init__(self, index: Index, embedder: Embedder, *, settings: Settings | None = None,
                 check: Callable[[int], None] | None = None,
                 admit: Callable[[int, int], None] | None = None) -> None:  # fmt: skip
        self._index = index
        self._embedder = embedder
        self._settings = settings or Settings()
        self._check = check
        self._admit = admit
        self._one = threading.Lock()

    def estimate(self, paths: Iterable[str | Path]) -> Estimate:
        """Predict what ingesting *paths* would take; opens no file."""
        files = list(find(paths))
        return Estimate(len(files), sum(f.size_bytes for f in files), sum(f.expected_chunks for f in files))

    def ingest(self, paths: Iterable[str | Path], *, owner: str = SHARED, session_id: str | None = None,
               on_progress: Callable[[IngestProgress], None] | None = None, cancel: threading.Event | None = None,
               passwords: Sequence[str] = ()) -> IngestReport:  # fmt: skip
        """Read files and folders into the index.

        Args:
            paths: Files and folders.
            owner: Whose documents.
            session_id: The only session that may use them.
            on_progress: Called as it goes, in this thread.
            cancel: Set it to stop; what is written stays, and the next ingest goes on from there.
            passwords: To try on encrypted PDF and Office files.

        Returns:
            What was added, updated, unchanged and refused, with the reason for each.

        Raises:
            MemoryBudgetError: The index would not fit; nothing was added.
            StorageFullError: The disk is full; what was written is unharmed.
        """
        with self._one:
            run = _Run(self._index, self._embedder, self._settings, owner, session_id, tuple(passwords),
                       on_progress or (lambda progress: None), cancel or threading.Event(), self._admit)  # fmt: skip
            return run.over(list(find(paths)), self._check)

    def missing(self, *, owner: str = SHARED, session_id: str | None = None) -> list[DocumentInfo]:
        """Return the documents whose files are gone, for the user to remove or not."""
        return [
            document for document in self._index.all_documents()
            if document.owner == owner and document.session_id == session_id and not Path(document.source).exists()
        ]  # fmt: skip

    def remove(self, document: str) -> None:
        """Remove a document, by its id, from the index; the file stays."""
        self._index.remove_document(document)


@dataclass(eq=False, slots=True)
class _Work:
    """A document on its way into the index."""

    file: File
    info: DocumentInfo
    known: frozenset[str] | set[str]  # ids of chunks that are in the index already
    update: bool
    seen: set[str] = field(default_factory=set)  # those of *known* that the file still holds
    kept: list[Chunk] = field(default_factory=list)  # to be told their new places
    chunks: int = 0
    waiting: int = 0  # chunks in the open batch
    read: bool = False


class _Run:
    """One call of ``ingest``."""

    def __init__(self, index: Index, embedder: Embedder, settings: Settings, owner: str, session_id: str | None,
                 passwords: tuple[str, ...], on_progress: Callable[[IngestProgress], None], cancel: threading.Event,
                 admit: Callable[[int, int], None] | None) -> None:  # fmt: skip
        self._index, self._embedder, self._settings = index, embedder, settings
        self._owner, self._session_id, self._passwords = owner, session_id, passwords
        self._on_progress, self._cancel, self._admit = on_progress, cancel, admit
        self._parser = Parser(timeout_s=settings.parser_timeout_s, max_bytes=settings.parser_max_bytes)
        self._batch: list[tuple[_Work, Chunk]] = []
        self._added: list[str] = []
        self._updated: list[str] = []
        self._unchanged: list[str] = []
        self._refused: dict[str, str] = {}
        self._embedded = self._reused = 0
        self._files_done = self._files_total = self._bytes_done = self._bytes_total = self._bytes_skipped = 0
        self._began = time.monotonic()

    def over(self, files: list[File], check: Callable[[int], None] | None) -> IngestReport:
        self._files_total, self._bytes_total = len(files), sum(file.size_bytes for file in files)
        todo = []
        for file in files:
            if not self._is_known(file):
                todo.append(file)
        if check is not None and todo:
            check(sum(file.expected_chunks for file in todo))
        cancelled = False
        with self._parser:
            try:
                for file in todo:
                    if self._cancel.is_set():
                        raise Cancelled
                    self._take(file)
                self._flush()
            except Cancelled:
                cancelled = True
        return IngestReport(
            tuple(self._added), tuple(self._updated), tuple(self._unchanged), dict(self._refused), self._embedded,
            self._reused, time.monotonic() - self._began, cancelled,
        )  # fmt: skip

    # Files

    def _is_known(self, file: File) -> bool:
        """Pass over a file that has not changed since it was read or refused."""
        found = self._document(file)
        if found is None or file.problem or found.status == "partial":
            return False
        if (found.size_bytes, found.mtime_ns) != (file.size_bytes, file.mtime_ns):
            return False
        self._bytes_skipped += file.size_bytes
        if found.status == "refused":
            if self._may_differ(found):
                self._bytes_skipped -= file.size_bytes
                return False
            self._refused[file.shown] = found.reason
            self._done(file, "refused", found.reason)
        else:
            self._unchanged.append(file.shown)
            self._done(file, "unchanged")
        return True

    def _may_differ(self, found: DocumentInfo) -> bool:
        """Tell whether a file that was refused is worth another try as it is."""
        kind = found.metadata.get("error")
        if kind == "EncryptedDocumentError":
            return bool(self._passwords)
        if kind in ("UnsupportedFormatError", "DocumentError"):
            return True
        *others, room = found.metadata.get("limits") or [0]
        return others != self._limits[:-1] or self._limits[-1] > room * _MORE_ROOM

    @property
    def _limits(self) -> list[float]:
        return [self._settings.parser_timeout_s, self._settings.max_file_bytes, self._settings.parser_max_bytes]

    def _take(self, file: File) -> None:
        """Bring one file into the index, or say why not."""
        self._report(file)
        before = self._document(file)
        try:
            info = self._opened(file)
            if before is not None and before.status == "ready" and before.content_hash == info.content_hash:
                self._index.finish_document(info.id, info=replace(before, mtime_ns=info.mtime_ns))
                self._unchanged.append(file.shown)
                self._done(file, "unchanged")
                return
        except DocumentError as exc:
            self._refuse(file, before, exc)
            return
        known = set(self._index.chunk_ids(info.id)) if before is not None else frozenset[str]()
        self._index.begin_document(replace(info, chunk_count=len(known)))
        work = _Work(file, info, known, update=before is not None and before.status != "refused")
        try:
            segments = self._parser.load(
                file.path, name=file.shown, passwords=self._passwords, cancelled=self._cancel.is_set
            )
            for chunk in split(segments, self._embedder, document_id=info.id):
                self._add(work, chunk)
            if not work.chunks:
                raise EmptyDocumentError(file.shown, "it holds no text")
        except DocumentError as exc:
            self._batch = [item for item in self._batch if item[0] is not work]
            self._refuse(file, info, exc)
            return
        work.read = True
        if not work.waiting:
            self._finish(work)

    def _opened(self, file: File) -> DocumentInfo:
        """Check what can be checked without a parser, and hash the file."""
        if file.problem:
            raise DocumentError(file.shown, *file.problem)
        if file.size_bytes > self._settings.max_file_bytes:
            raise DocumentTooLargeError(
                file.shown, f"it has {format_bytes(file.size_bytes)}, more than "
                f"{format_bytes(self._settings.max_file_bytes)}", "split it, or raise max_file_bytes",
            )  # fmt: skip
        if not file.size_bytes:
            raise EmptyDocumentError(file.shown, "the file is empty")
        digest = hashlib.sha256()
        try:
            with file.path.open("rb") as stream:
                while block := stream.read(_HASH_BYTES):
                    digest.update(block)
        except PermissionError as exc:
            raise DocumentError(file.shown, "you may not read it", "check its permissions") from exc
        except OSError as exc:
            raise DocumentError(file.shown, f"it can't be read ({exc.strerror})") from exc
        return self._info(file, digest.hexdigest())

    def _info(self, file: File, content_hash: str, **changes: Any) -> DocumentInfo:
        return DocumentInfo(
            id=document_id(self._owner, self._session_id, str(file.path)), source=str(file.path), name=file.path.name,
            content_hash=content_hash, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns, chunk_count=0,
            added_at=time.time(), owner=self._owner, session_id=self._session_id,
            **{"status": "partial", **changes},
        )  # fmt: skip

    def _document(self, file: File) -> DocumentInfo | None:
        return self._index.get_document(document_id(self._owner, self._session_id, str(file.path)))

    # Chunks

    def _add(self, work: _Work, chunk: Chunk) -> None:
        work.chunks += 1
        if chunk.id in work.known:
            work.seen.add(chunk.id)
            work.kept.append(chunk)
            self._reused += 1
            if len(work.kept) >= _KEPT_BATCH:
                self._keep(work)
        else:
            work.waiting += 1
            self._batch.append((work, chunk))
            if len(self._batch) >= BATCH_CHUNKS:
                self._flush()
        if work.chunks % 32 == 0:
            self._report(work.file, within=chunk.end)
            if self._cancel.is_set():
                raise Cancelled

    def _keep(self, work: _Work) -> None:
        kept, work.kept = work.kept, []
        if kept:
            self._index.move_chunks(work.info.id, kept)

    def _flush(self) -> None:
        """Embed and write the open batch, whichever documents its chunks are of."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        if self._admit is not None:
            self._admit(len(batch), self._parser.rss)
        vectors = self._embedder.embed([chunk.text for _, chunk in batch], remember=True)
        start = 0
        while start < len(batch):
            work, stop = batch[start][0], start
            while stop < len(batch) and batch[stop][0] is work:
                stop += 1
            self._index.add_chunks(work.info.id, [chunk for _, chunk in batch[start:stop]], vectors[start:stop])
            work.waiting -= stop - start
            self._embedded += stop - start
            if work.read and not work.waiting:
                self._finish(work)
            start = stop

    def _finish(self, work: _Work) -> None:
        """Make a document ready: drop what its file no longer holds."""
        self._keep(work)
        self._index.drop_chunks(work.info.id, sorted(work.known - work.seen))
        self._index.finish_document(work.info.id, info=replace(work.info, status="ready"))
        (self._updated if work.update else self._added).append(work.file.shown)
        self._done(work.file, "updated" if work.update else "added")

    def _refuse(self, file: File, before: DocumentInfo | None, error: DocumentError) -> None:
        """Record why a file is not in the index; chunks of what it held before leave."""
        reason = error.reason + (f"; {error.remedy}" if error.remedy else "")
        self._refused[file.shown] = reason
        if not file.problem:
            facts = {"error": type(error).__name__, "limits": self._limits}
            content_hash = before.content_hash if before is not None else ""
            self._index.refuse_document(self._info(file, content_hash, status="refused", reason=reason, metadata=facts))
        self._done(file, "refused", reason)

    # Progress

    def _done(self, file: File, outcome: str, reason: str = "") -> None:
        self._files_done += 1
        self._bytes_done += file.size_bytes
        self._report(file, outcome, reason)

    def _report(self, file: File, outcome: str = "", reason: str = "", *, within: int = 0) -> None:
        done = self._bytes_done + min(within, int(file.size_bytes * 0.98))
        seconds = time.monotonic() - self._began
        worked, left = done - self._bytes_skipped, self._bytes_total - done
        remaining = seconds * left / worked if seconds > _CERTAIN_S and worked > 0 else None
        chunks = self._embedded + self._reused
        self._on_progress(IngestProgress(
            file.shown, self._files_done, self._files_total, done, self._bytes_total, chunks,
            chunks / seconds if seconds > 0 else 0.0, remaining, outcome, reason,
        ))  # fmt: skip


def document_id(owner: str, session_id: str | None, source: str) -> str:
    """Return the id of a document: it depends on whose and which file it is, not on what the file holds."""
    text = "\0".join([owner, session_id or "", source])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
