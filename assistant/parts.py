"""One of each: the worker, the models, the index and the stores of a process, made on first use and closed once.

Knows how parts are made and in which order they end; does not know what a turn does with them.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from . import memory
from .admission import Admission, MemoryGate
from .history import History
from .models import ResolvedModel, check_folder, listed, resolve
from .prompts import Prompts
from .settings import Settings
from .starting import undisturbed

if TYPE_CHECKING:
    from .budget import Earlier
    from .embedding import Embedder
    from .index import Index
    from .inference import ChatModel
    from .ingest import Ingestor
    from .recall import Recall
    from .retrieval import Retrieval
    from .worker import TorchWorker

logger = logging.getLogger(__name__)

_SMALL_MODEL = 1_000_000_000  # parameters


class Parts:
    """The parts of one ``Assistant``, each made once, when first asked for.

    Attributes:
        settings: What they are made from.
        prompts: Checked when this object is made, so that a bad prompt file is an error at start.
        budget: The memory budget and where it comes from.
        history: The conversation store, open from the start: a question is stored before anything else is loaded.
        admission: The queue of turns.

    Raises:
        PromptError: A prompt file is missing or wrong.
        HistoryError: The conversation store can't be opened.
        ModelNotFoundError: No model answers to a name in the settings.
    """

    def __init__(self, settings: Settings) -> None:
        memory.set_up_process()
        self.settings = settings
        self.prompts = Prompts.load(settings.prompts_dir)
        self.budget = memory.detect_budget(settings.memory_budget)
        self.resolved_model: ResolvedModel = resolve(settings.model, settings.models_dir)
        self.resolved_embedder: ResolvedModel = resolve(settings.embedder, settings.models_dir, kind="embedder")
        self.admission = Admission(settings.queue_size)
        self.history = History.open(
            settings.history_dir, max_bytes=settings.history_max_bytes, archive=settings.history_archive
        )
        self._made: dict[str, Any] = {}
        self._locks = {name: threading.RLock() for name in _MAKERS}
        self._used_at = time.monotonic()
        self._closed = threading.Event()
        self._keeper: threading.Thread | None = None
        memory.log_rss("start")

    @property
    def plan(self) -> memory.MemoryPlan:
        """What will be loaded, chosen so that it fits the memory budget.

        Raises:
            MemoryBudgetError: Even the least does not fit.
        """
        plan: memory.MemoryPlan = self._part("plan")
        return plan

    @property
    def gate(self) -> MemoryGate:
        """Lets turns and batches start when their predicted peak fits."""
        gate: MemoryGate = self._part("gate")
        return gate

    @cached_property
    def earlier(self) -> Earlier | None:
        """What writes the window's questions where answers stay out of it; None where it is whole turns.

        On XQuAD, 60 questions that change the subject within sessions of six, the packaged model's replies hold the
        answer for 28 % with whole turns in the prompt, for 47 % with their questions, and for 49 % with nothing.
        """
        style, model = self.settings.window_style, self.resolved_model
        if style == "auto":
            small = model.path is not None and check_folder(model.path).parameters < _SMALL_MODEL
            style = "questions" if small else "turns"
        return self.prompts.earlier_questions if style == "questions" else None

    def memory_report(self) -> memory.MemoryReport:
        """Return the plan and what else would fit, without loading anything."""
        settings = self.settings
        others = [
            needs
            for row in listed(settings.models_dir)
            if row.kind == "chat" and row.ready
            for needs in memory.read_needs(row.path, row.name, kernels=_kernels())
        ]
        return memory.report(
            self.budget, _wanted_models(self), others, context_tokens=settings.context_tokens,
            chunks=stored_chunks(settings.store_dir), chunk_bytes=_chunk_bytes(self),
        )  # fmt: skip

    @property
    def worker(self) -> TorchWorker:
        """The one thread that does torch's work."""
        worker: TorchWorker = self._part("worker")
        return worker

    @property
    def embedder(self) -> Embedder:
        """The one embedding model."""
        embedder: Embedder = self._part("embedder")
        return embedder

    @property
    def index(self) -> Index:
        """The one open index."""
        index: Index = self._part("index")
        return index

    @property
    def retrieval(self) -> Retrieval:
        """Search over the index."""
        retrieval: Retrieval = self._part("retrieval")
        return retrieval

    @property
    def recall(self) -> Recall:
        """Search over old turns."""
        recall: Recall = self._part("recall")
        return recall

    @property
    def ingestor(self) -> Ingestor:
        """What reads documents into the index."""
        ingestor: Ingestor = self._part("ingestor")
        return ingestor

    @property
    def chat_model(self) -> ChatModel | None:
        """The one chat model, or None where the settings say ``none``."""
        chat_model: ChatModel | None = self._part("chat_model")
        return chat_model

    def warm(self) -> None:
        """Load the models side by side; what is loaded already stays."""
        thread = threading.Thread(target=self._quietly, args=(lambda: self.chat_model,), name="load-chat-model")
        thread.start()
        try:
            self.retrieval.warm()
        finally:
            thread.join()

    def warm_chat_model(self) -> None:
        """Start loading the chat model in the background, while the search goes on; errors show when it is used."""
        if "chat_model" not in self._made:
            threading.Thread(
                target=self._quietly, args=(lambda: self.chat_model,), name="load-chat-model", daemon=True
            ).start()

    def used(self) -> None:
        """Note that a turn or an ingest happened, and start watching for idleness."""
        self._used_at = time.monotonic()
        if self.settings.idle_unload_s and self._keeper is None:
            self._keeper = threading.Thread(target=self._watch_idleness, name="idle-keeper", daemon=True)
            self._keeper.start()

    def release(self) -> int:
        """Give back what no turn needs; returns the bytes by which RSS fell."""
        return memory.release()

    def release_more(self) -> int:
        """Give back also what a turn can do without: prompts kept between turns, the catalog's pages.

        Returns:
            Bytes by which RSS fell.
        """
        before = memory.rss()
        chat_model, index = self._made.get("chat_model"), self._made.get("index")
        if chat_model is not None:
            chat_model.release_caches()
        if index is not None:
            index.shrink()
        memory.release()
        return max(0, before - memory.rss())

    def admit_batch(self, chunks: int, parser_bytes: int) -> None:
        """Let the next batch of an ingest start, when there is room; called before each.

        Raises:
            MemoryBudgetError: There is none, and none came.
        """
        from .embedding import BATCH_TEXTS

        self.used()  # an ingest of hours is no idleness
        memory.log_rss("a batch of an ingest")
        share = min(1.0, chunks / BATCH_TEXTS)
        self.gate.batch(chunks * self.plan.chunk_bytes, parser_bytes, share=share)

    def unload(self) -> None:
        """Drop the models from RAM; they come back by memory-mapping when next used."""
        for name in ("chat_model", "embedder"):
            part = self._made.get(name)
            if part is not None:
                part.unload()
        memory.release()
        memory.log_rss("unloading the models")

    def close(self) -> None:
        """Close everything in the reverse order of need. Doing it twice does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.admission.close()
        for name in ("ingestor", "recall", "retrieval", "chat_model", "embedder", "index", "worker"):
            part = self._made.pop(name, None)
            close = getattr(part, "close", None)
            if close is not None:
                close()
        self.history.close()
        memory.release()

    def _part(self, name: str) -> Any:
        if name in self._made:
            return self._made[name]
        with self._locks[name]:
            if name not in self._made:
                if self._closed.is_set():
                    raise RuntimeError("this Assistant is closed; make a new one")
                started = time.monotonic()
                with undisturbed():
                    self._made[name] = _MAKERS[name](self)
                memory.trim()
                logger.info("%s ready after %.2f s", name, time.monotonic() - started)
                memory.log_rss(f"loading {name}")
            return self._made[name]

    def _quietly(self, make: Callable[[], object]) -> None:
        try:
            make()
        except Exception as exc:  # noqa: BLE001 - raised again, in the foreground, by whoever uses the part
            logger.info("loading in the background failed: %s", exc)

    def _watch_idleness(self) -> None:
        limit = self.settings.idle_unload_s
        while not self._closed.wait(min(limit, 30.0)):
            idle = time.monotonic() - self._used_at
            if idle >= limit and not self.admission.running:
                self._used_at = time.monotonic() + limit  # once, until the next use
                self.unload()


def _make_plan(parts: Parts) -> memory.MemoryPlan:
    settings = parts.settings
    plan = memory.choose(
        parts.budget, _wanted_models(parts), context_tokens=settings.context_tokens,
        chunks=stored_chunks(settings.store_dir), remote=parts.resolved_model.kind == "url",
        browser="gradio" in sys.modules, prefix_cache=settings.prefix_cache, chunk_bytes=_chunk_bytes(parts),
    )  # fmt: skip
    for note in plan.notes:
        logger.info(note)
    return plan


def _make_gate(parts: Parts) -> MemoryGate:
    folder, planned = parts.settings.store_dir, parts.plan.chunks
    return MemoryGate(parts.plan, parts.release_more, lambda: max(0, stored_chunks(folder) - planned))


def _wanted_models(parts: Parts) -> list[memory.ModelNeeds]:
    """Return the ways to run the chosen model, the preferred one first; none for quotes alone and for a server."""
    resolved, asked = parts.resolved_model, parts.settings.dtype
    if resolved.kind != "folder" or resolved.path is None:
        return []
    dtypes = {"auto": ("auto",), "int8": ("int8", "auto")}.get(asked, (asked, "int8", "auto"))
    return memory.read_needs(resolved.path, resolved.name, dtypes, kernels=_kernels())


def _kernels() -> bool:
    from .inference.native.build import library

    return library() is not None


def stored_chunks(store_dir: Path) -> int:
    """Return how many chunks the index holds, without opening it."""
    return _stored(store_dir, "SELECT count(*) FROM chunks")


def _chunk_bytes(parts: Parts) -> int:
    """Return what the index keeps in RAM of a chunk: its vectors are short or full."""
    short, full = (
        _stored(parts.settings.store_dir, f"SELECT value FROM facts WHERE name = '{name}'")
        for name in ("short", "dimension")
    )
    path = parts.resolved_embedder.path
    if not full and path is not None:
        from .embedding.folder import read_folder
        from .index import short_dimension

        folder = read_folder(path)
        full = int(folder.config.get("hidden_size") or 1024)
        short = short_dimension(folder.fingerprint, full)
    return memory.bytes_a_chunk(short or full, short=bool(short))


def _stored(store_dir: Path, sql: str) -> int:
    """Return the number that *sql* finds first in the index; 0 where there is none."""
    path = store_dir / "index.sqlite3"
    if not path.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5)) as connection:
            found = connection.execute(sql).fetchone()
            return int(found[0]) if found else 0
    except sqlite3.Error:  # damaged or of another version: whoever opens it says so
        return 0


def _make_worker(parts: Parts) -> TorchWorker:
    from .worker import TorchWorker

    _ = parts.plan  # first of all: a budget too small for anything is refused, not overrun
    return TorchWorker(parts.settings.threads)


def _make_embedder(parts: Parts) -> Embedder:
    from .embedding import load_embedder

    settings = parts.settings
    return load_embedder(
        parts.resolved_embedder,
        parts.worker,
        cache_dir=settings.store_dir / "embedding_cache",
        cache_bytes=settings.embedding_cache_bytes,
        early=True,
    )


def _make_index(parts: Parts) -> Index:
    from .index import Index

    embedder = parts.embedder
    return Index.open(parts.settings.store_dir, dimension=embedder.dimension, fingerprint=embedder.fingerprint)


def _make_retrieval(parts: Parts) -> Retrieval:
    from .retrieval import Retrieval

    return Retrieval(parts.index, parts.embedder)


def _make_recall(parts: Parts) -> Recall:
    from .recall import Recall

    return Recall(parts.history, parts.embedder)


def _make_ingestor(parts: Parts) -> Ingestor:
    from .ingest import Ingestor

    most = parts.plan.parser_bytes(parts.settings.parser_max_bytes)
    return Ingestor(
        parts.index, parts.embedder, settings=replace(parts.settings, parser_max_bytes=most),
        check=parts.gate.ingest, admit=parts.admit_batch,
    )  # fmt: skip


def _make_chat_model(parts: Parts) -> ChatModel | None:
    plan = parts.plan
    if parts.resolved_model.kind == "none" or (parts.resolved_model.kind == "folder" and plan.model is None):
        return None
    from .inference import load_chat_model

    settings = parts.settings
    # The plan counts "auto" as int8 until the file of 4-bit weights is there: it is the model that makes it.
    as_set = plan.model is None or (settings.dtype == "auto" and plan.dtype in ("int4", "int8"))
    return load_chat_model(
        parts.resolved_model,
        parts.worker,
        dtype=settings.dtype if as_set else "auto" if plan.dtype == "int4" else plan.dtype,
        context_tokens=plan.context_tokens or settings.context_tokens,
        prefix_cache_bytes=plan.prefix_cache_bytes,
        device=settings.device,
        model_name=settings.model_name,
        api_key=settings.api_key,
    )


_MAKERS: dict[str, Callable[[Parts], Any]] = {
    "plan": _make_plan,
    "gate": _make_gate,
    "worker": _make_worker,
    "embedder": _make_embedder,
    "index": _make_index,
    "retrieval": _make_retrieval,
    "recall": _make_recall,
    "ingestor": _make_ingestor,
    "chat_model": _make_chat_model,
}
