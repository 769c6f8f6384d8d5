"""The ``Assistant``: one object that browser, terminal and scripts all call.

It owns the parts and opens and closes them; what a turn does is in ``turn``, what a part does in its module.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .chain import DocumentRetriever, LocalChatModel, TurnChain
from .errors import (
    AccessError,
    InferenceError,
    ModelNotFoundError,
    QuestionError,
    UnknownDocumentError,
    UnknownTurnError,
)
from .history import FOLLOW, History
from .memory import log_rss
from .memory import settle as settle_process
from .parts import Parts
from .records import (
    LOCAL_USER,
    SHARED,
    Answer,
    DocumentInfo,
    Done,
    Event,
    IngestProgress,
    IngestReport,
    Passage,
    Scope,
    SearchResult,
    Turn,
)
from .settings import Settings
from .turn import TurnRequest, TurnRunner, sampling_from

if TYPE_CHECKING:
    from .embedding import Embedder
    from .index import IndexReport
    from .memory import MemoryReport


MAX_QUESTION_CHARS = 200_000
"""Longer texts are no questions: they are refused before anything reads, stores or copies them."""


class Assistant:
    """A chat assistant over documents, within budgets.

    Making one opens the conversation store and checks the prompts; models and index load when first used. It may be
    used from several threads; turns queue for the one model. Close it, or use it in a ``with`` block.

    Args:
        settings: Everything that can be set.

    Raises:
        AssistantError: A prompt is wrong, a store can't be opened, or no such model exists.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self._parts = Parts(self.settings)
        self._runner = TurnRunner(self._parts)

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Finish what is being written and close everything; doing it twice does nothing."""
        self._parts.close()

    # Turns

    def ask(self, question: str, *, session_id: str | None = None, user: str = LOCAL_USER,
            documents: Sequence[str] | None = None) -> Answer:  # fmt: skip
        """Ask, and wait for the answer.

        Args:
            question: In words.
            session_id: Continue this session (made when new); None starts one, named in the answer.
            user: Whose session.
            documents: Names or ids; search in these only.

        Raises:
            AssistantError: See :meth:`stream`.
        """
        for event in self.stream(question, session_id=session_id, user=user, documents=documents):
            if isinstance(event, Done):
                return event.answer
        raise InferenceError("The turn ended without an answer; ask again.")

    def stream(self, question: str, *, session_id: str | None = None, user: str = LOCAL_USER,
               documents: Sequence[str] | None = None, stop: threading.Event | None = None,
               expected_version: int | None = None) -> Iterator[Event]:  # fmt: skip
        """Ask, and get what happens as it happens: ``Queued``, ``Retrieved``, ``Token`` …, ``Done``.

        Closing the iterator, or setting *stop*, stops the turn; what there is by then is kept.

        Args:
            question: In words.
            session_id: Continue this session (made when new); None starts one.
            user: Whose session.
            documents: Names or ids; search in these only.
            stop: Set it from another thread to stop.
            expected_version: The session's version as the caller last saw it.

        Raises:
            BusyError: Too many turns wait.
            StaleSessionError: The session changed since *expected_version*.
            QuestionError: The question is empty, or longer than ``MAX_QUESTION_CHARS``.
            ContextOverflowError: The question is too long, and by how many tokens.
            UnknownDocumentError: One of *documents* is not there.
            AssistantError: The turn failed; the question is kept.
        """
        session_id = session_id if session_id is not None else new_session_id()
        return self._run(question, session_id, user, stop, documents=documents, expected_version=expected_version)

    def retry(self, session_id: str, *, user: str = LOCAL_USER, stop: threading.Event | None = None) -> Iterator[Event]:
        """Answer the last question again, beside the old answer, which stays as a branch.

        Raises:
            UnknownSessionError: No such session.
            UnknownTurnError: It is empty.
        """
        last = next(self.history.window(session_id, user), None)
        if last is None:
            self.history.session(session_id, user)
            raise UnknownTurnError("There is nothing to retry: this conversation is empty.")
        return self._run(last.question, session_id, user, stop, parent_id=last.parent_id)

    def edit(self, session_id: str, turn_id: int, question: str, *, user: str = LOCAL_USER,
             stop: threading.Event | None = None) -> Iterator[Event]:  # fmt: skip
        """Ask an earlier question differently; what followed the old one stays as a branch.

        Raises:
            UnknownTurnError: No such turn in this session.
        """
        turn = self.history.turn(turn_id, session_id, user)
        return self._run(question, session_id, user, stop, parent_id=turn.parent_id)

    def undo(self, session_id: str, *, user: str = LOCAL_USER) -> Turn | None:
        """Take the last turn back; it stays as a branch. Returns it, or None where there was none."""
        return self.history.undo(session_id, user)

    # Documents

    def ingest(self, paths: Iterable[str | Path], *, on_progress: Callable[[IngestProgress], None] | None = None,
               cancel: threading.Event | None = None, user: str = LOCAL_USER, session_id: str | None = None,
               passwords: Sequence[str] = ()) -> IngestReport:  # fmt: skip
        """Read files and folders into the index.

        Doing it twice adds nothing; a changed file replaces its own chunks; one broken off goes on where it was.

        Args:
            paths: Files and folders.
            on_progress: Called as it goes.
            cancel: Set it to stop after the current batch.
            user: Whose documents; the local user's are shared with everybody.
            session_id: For this session only.
            passwords: To try on encrypted files.

        Returns:
            What was added, updated, unchanged, and refused with the reason for each.

        Raises:
            MemoryBudgetError: The index would not fit the memory budget; nothing was added.
            StorageFullError: The disk is full; what was there is unharmed.
        """
        try:
            return self._parts.ingestor.ingest(
                [Path(path) for path in paths], owner=_owner(user, session_id), session_id=session_id,
                on_progress=on_progress, cancel=cancel, passwords=tuple(passwords),
            )  # fmt: skip
        finally:
            self._parts.used()
            self._parts.release()
            log_rss("an ingest")

    def documents(self, *, user: str = LOCAL_USER, session_id: str | None = None) -> list[DocumentInfo]:
        """Return the documents that this user may search, in this session if one is named."""
        return self._parts.index.documents(Scope(user, session_id))

    def remove_document(self, name: str, *, user: str = LOCAL_USER, session_id: str | None = None) -> DocumentInfo:
        """Remove a document, by name, path or id, from the index. The file itself stays.

        Raises:
            UnknownDocumentError: There is no such document for this user.
            AccessError: It is shared, and not this user's to remove.
        """
        document = self._parts.index.find_document(name, Scope(user, session_id))
        if document.owner not in (user, _owner(user, None)):
            raise AccessError(f"{document.name} is not yours to remove; it belongs to whoever keeps this assistant.")
        self._parts.index.remove_document(document.id)
        return document

    def passage(self, document_id: str, start: int, end: int, around: int = 1200, *,
                user: str = LOCAL_USER) -> Passage:  # fmt: skip
        """Return what stands around a quote in its document.

        Args:
            document_id: From the quote.
            start: Of the quote, in the document's extracted text.
            end: Past the quote.
            around: Characters before and behind.
            user: Who asks.

        Raises:
            UnknownDocumentError: This user has no such document (any more).
        """
        document = self._parts.index.get_document(document_id)
        if document is None or document.owner not in (SHARED, user):
            raise UnknownDocumentError("This document is not in the index any more; the quote is what is left of it.")
        first = max(0, start - around)
        before = self._parts.index.text(document_id, first, start)
        quote = self._parts.index.text(document_id, start, end)
        after = self._parts.index.text(document_id, end, end + around)
        return Passage(
            document_id, document.name, document.source, before + quote + after, first,
            len(before), len(before) + len(quote),
        )  # fmt: skip

    def check_index(self, *, repair: bool = False) -> IndexReport:
        """Hold vectors, text and words of the index against each other; with *repair*, mend what differs."""
        index = self._parts.index
        return index.repair(self._parts.embedder.embed) if repair else index.check()

    def compact_index(self) -> int:
        """Give the disk space of removed documents back; returns the bytes."""
        return self._parts.index.compact(force=True)

    def search(self, question: str, *, session_id: str | None = None, user: str = LOCAL_USER,
               documents: Sequence[str] | None = None, top_k: int | None = None) -> SearchResult:  # fmt: skip
        """Search as a turn of this session would, without asking the model or storing anything."""
        turns = list(self.history.turns(session_id, user, limit=8)) if session_id is not None else []
        scope = Scope(user, session_id)
        return self._parts.retrieval.search(
            question, turns=turns, top_k=top_k or self.settings.top_k, scope=scope,
            document_ids=self._document_ids(documents, scope),
        )  # fmt: skip

    # Parts

    @property
    def history(self) -> History:
        """The conversations: list, search, rename, delete, branches."""
        return self._parts.history

    @property
    def parts(self) -> Parts:
        """The parts this assistant runs on, each made when first asked for."""
        return self._parts

    @property
    def embedder(self) -> Embedder:
        """The embedding model, a LangChain ``Embeddings``."""
        return self._parts.embedder

    @cached_property
    def retriever(self) -> DocumentRetriever:
        """The search as a LangChain ``BaseRetriever``."""
        return DocumentRetriever(retrieval=self._parts.retrieval, top_k=self.settings.top_k, scope=Scope(SHARED))

    @cached_property
    def chat_model(self) -> LocalChatModel:
        """The chat model as a LangChain ``BaseChatModel``.

        Raises:
            ModelNotFoundError: The settings say ``model = none``.
        """
        model = self._parts.chat_model
        if model is None:
            raise ModelNotFoundError("There is no chat model: the setting model is none. Set model=packaged for ours.")
        return LocalChatModel(model=model, sampling=sampling_from(self.settings))

    @cached_property
    def chain(self) -> TurnChain:
        """A whole turn as a LangChain ``Runnable``: invoke, stream, batch, ainvoke, astream."""
        return TurnChain(self.stream)

    def warm(self, *, settle: bool = False) -> None:
        """Load the models now instead of with the first question.

        Args:
            settle: Then take all objects of this process out of the garbage collector's sight (``gc.freeze``), which
                saves each turn a walk over them. For a process that serves this assistant and nothing else.
        """
        self._parts.warm()
        if settle:
            settle_process()

    def plan_memory(self) -> tuple[str, ...]:
        """Plan now what will be loaded, instead of with its first use.

        Returns:
            What was given up to fit the memory budget, in words for people; empty when nothing was.

        Raises:
            MemoryBudgetError: Even the least does not fit; the message holds the sum.
        """
        return self._parts.plan.notes

    def memory_report(self) -> MemoryReport:
        """Return the memory plan and what else would fit; loads nothing."""
        return self._parts.memory_report()

    # Inside

    def _run(self, question: str, session_id: str, user: str, stop: threading.Event | None, *,
             documents: Sequence[str] | None = None, parent_id: int | None = FOLLOW,
             expected_version: int | None = None) -> Iterator[Event]:  # fmt: skip
        if not question.strip():
            raise QuestionError("There is no question; write what you want to know.")
        if len(question) > MAX_QUESTION_CHARS:
            raise QuestionError(
                f"The question has {len(question):,} characters, and {MAX_QUESTION_CHARS:,} are the most; put so long "
                "a text in as a document, and ask about it."
            )
        request = TurnRequest(
            question=question, session_id=session_id, user=user, stop=stop or threading.Event(),
            document_ids=self._document_ids(documents, Scope(user, session_id)), parent_id=parent_id,
            expected_version=expected_version,
        )  # fmt: skip
        return self._runner.run(request)

    def _document_ids(self, names: Sequence[str] | None, scope: Scope) -> tuple[str, ...] | None:
        if not names:
            return None
        return tuple(self._parts.index.find_document(name, scope).id for name in names)


def new_session_id() -> str:
    """Return an id that no session has."""
    return uuid.uuid4().hex[:12]


def _owner(user: str, session_id: str | None) -> str:
    """The local user's documents are for all: whoever keeps the machine fills the shelf. Those of a session are not."""
    return SHARED if user == LOCAL_USER and session_id is None else user
