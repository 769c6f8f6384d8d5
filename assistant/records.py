"""The values that pass between modules: documents, chunks, hits, quotes, turns, receipts and events.

Plain frozen data: nothing here reads a file, knows a library or has behaviour beyond writing itself as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

LOCAL_USER = "local"
"""Who owns a session when nobody logged in."""

SHARED = ""
"""Owner of a document that every user may read."""


class Message(TypedDict):
    """One chat message, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose documents a search may see: shared ones, the user's own, and those of this session."""

    user: str = LOCAL_USER
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """One document of the corpus, as the index lists it.

    Attributes:
        id: Hash of owner, session and source: stable while the content changes.
        source: The path or upload name that the user gave.
        name: The last part of *source*, for people.
        status: ``ready``; ``partial`` while or after an ingest broke off; ``refused`` with *reason*.
        content_hash: SHA-256 of the file's bytes.
        size_bytes: Of the file.
        mtime_ns: Of the file, when read: an unchanged file costs a stat.
        chunk_count: Chunks in the index.
        added_at: Seconds since the epoch.
        owner: A user, or ``SHARED``.
        session_id: The only session that may use it, or None for all.
    """

    id: str
    source: str
    name: str
    status: Literal["ready", "partial", "refused"]
    content_hash: str
    size_bytes: int
    mtime_ns: int
    chunk_count: int
    added_at: float
    reason: str = ""
    owner: str = SHARED
    session_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


SEPARATOR = "\n\n"
"""What stands between two segments in a document's extracted text."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a document as its loader gives it: a paragraph, a heading, a table row.

    A document's extracted text is the texts of its segments, each after the first with its ``glue`` before it;
    offsets of chunks and quotes count in that text.

    Attributes:
        text: Never empty; without whitespace at its ends, but for a slice of a text file, which is verbatim.
        page: From 1, where the format has pages (slides and sheets count as pages).
        label: What the document itself calls the page (``iv``, ``A-3``, a sheet's name), if not its number.
        heading: The headings above it, outermost first.
        row: From 1, of a table row in the file or in its table.
        line: From 1, of its first line, where the format has lines.
        kind: ``heading`` segments are text as well as part of the ``heading`` of what follows them.
        glue: What stands between the segment before and this one.
    """

    text: str
    page: int | None = None
    label: str = ""
    heading: tuple[str, ...] = ()
    row: int | None = None
    line: int | None = None
    kind: Literal["text", "heading", "row", "code"] = "text"
    glue: str = SEPARATOR


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of a document's text, no longer than the embedder reads.

    Attributes:
        id: Content hash over document, text and occurrence.
        position: Place in the document, from 0.
        text: Verbatim slice of the extracted text.
        start: Offset of its first character in the document's extracted text.
        end: Offset past its last character.
        page: From 1, where the format has pages (slides and sheets count as pages).
        line: From 1, of its first line in the extracted text.
        row: From 1, of its first row in a table.
        heading: The headings above it, outermost first, joined by `` > ``; may be empty.
        places: (offset in the text, row, line) from where on rows and lines count anew: where the file holds more, or
            less, between two sentences than their line breaks say. ``place_at`` reads them.
    """

    id: str
    document_id: str
    position: int
    text: str
    start: int
    end: int
    page: int | None = None
    line: int | None = None
    row: int | None = None
    heading: str = ""
    places: tuple[tuple[int, int | None, int | None], ...] = ()

    def place_at(self, offset: int) -> tuple[int | None, int | None]:
        """Return the row and the line of the character at *offset* in the text."""
        at, row, line = 0, self.row, self.line
        for place in self.places:
            if place[0] > offset:
                break
            at, row, line = place
        below = self.text.count("\n", at, offset)
        return (None if row is None else row + below), (None if line is None else line + below)


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found.

    Attributes:
        score: Of the fused ranking; higher is better; comparable within one search only.
        parts: What each arm said: arm name to score (cosine, BM25, reciprocal ranks).
    """

    chunk: Chunk
    document: DocumentInfo
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quote:
    """A verbatim sentence (or table row) that an answer rests on.

    ``text`` equals the document's extracted text from *start* to *end*; for a recalled turn, the turn's text.

    Attributes:
        number: From 1; what ``[1]`` in an answer refers to.
        kind: ``document``, or ``turn`` when recalled from an earlier turn.
        context: The chunk around it, for highlighting.
        score: 0 to 1, how well it fits the question.
        turn_id: Of a recalled turn.
        said_by: ``user`` or ``assistant``, of a recalled turn.
        said_at: Seconds since the epoch, of a recalled turn.
    """

    number: int
    text: str
    name: str
    score: float
    document_id: str = ""
    chunk_id: str = ""
    start: int = 0
    end: int = 0
    page: int | None = None
    line: int | None = None
    row: int | None = None
    heading: str = ""
    context: str = ""
    kind: Literal["document", "turn"] = "document"
    session_id: str = ""
    turn_id: int | None = None
    said_by: str = ""
    said_at: float | None = None

    @property
    def place(self) -> str:
        """Where it stands, for people: ``handbook.pdf, page 3, Notice``."""
        parts = [self.name]
        if self.page is not None:
            parts.append(f"page {self.page}")
        elif self.row is not None:
            parts.append(f"row {self.row}")
        elif self.line is not None:
            parts.append(f"line {self.line}")
        if self.heading:
            parts.append(self.heading)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document's extracted text around a quote.

    Attributes:
        text: From *start* on; verbatim, as far as the index holds it.
        start: Offset of its first character in the document.
        quote_start: Offset of the quote in *text*.
        quote_end: Offset past the quote in *text*.
    """

    document_id: str
    name: str
    source: str
    text: str
    start: int
    quote_start: int
    quote_end: int


@dataclass(frozen=True, slots=True)
class SearchedQuery:
    """One query that a search ran: what it said, and what it weighed in the fusion.

    Attributes:
        origin: Whose words it has, for people: ``question`` or ``with the turns before``.
    """

    text: str
    weight: float
    origin: str = "question"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found, best first, and what it looked for.

    Attributes:
        terms: Stems of the words that matter, the question's and earlier turns', to their weight: how rare the word
            is in the index (IDF), times the weight of the query that brought it.
    """

    hits: tuple[Hit, ...]
    queries: tuple[SearchedQuery, ...]
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenReceipt:
    """Where the context went this turn, in the chat model's own tokens.

    ``template + system + window + recalled + evidence + question == prompt``, the true length of the prompt, and
    ``prompt + reserve <= context``.

    Attributes:
        template: What the chat template puts around the messages.
        window_turns: Ids of the turns the model saw, oldest first.
        left_out_turns: Ids of the newest turns that did not fit, newest first; older ones are only counted.
        left_out_count: How many turns did not fit.
        recalled_turns: Ids of turns brought back.
        left_out_quotes: Numbers of the quotes that did not fit.
        generated: Tokens of the answer; 0 until it is done.
        estimated: True where the model's tokenizer is out of reach (a remote model).
    """

    context: int
    reserve: int
    template: int
    system: int
    window: int
    recalled: int
    evidence: int
    question: int
    prompt: int
    window_turns: tuple[int, ...] = ()
    left_out_turns: tuple[int, ...] = ()
    left_out_count: int = 0
    recalled_turns: tuple[int, ...] = ()
    left_out_quotes: tuple[int, ...] = ()
    generated: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class MemoryReceipt:
    """RSS of the process around one turn, in bytes.

    Attributes:
        released: What release gave back at the end (0 when nothing).
        left: ``budget - after``; where a cgroup enforces the budget, file pages count in part, as in the plan.
        actions: What was shrunk or released to fit, in words for people.
    """

    before: int
    peak: int
    after: int
    released: int
    budget: int
    left: int
    actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TimeReceipt:
    """Seconds of one turn."""

    queued_s: float = 0.0
    quotes_s: float = 0.0
    first_token_s: float | None = None
    total_s: float = 0.0
    tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A sentence of an answer held against its evidence.

    Attributes:
        start: Offset in the answer's text.
        end: Offset past its last character.
        support: 0 to 1.
        supported: Whether *support* passes the threshold.
        quotes: Numbers of the quotes that support it best.
    """

    start: int
    end: int
    support: float
    supported: bool
    quotes: tuple[int, ...] = ()


TurnStatus = Literal["running", "done", "stopped", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, as stored.

    Attributes:
        parent_id: The turn it follows; editing a question makes a sibling.
        status: ``running`` while it is being written; ``interrupted`` when its process died.
        details: Quotes, receipts, marks and searched queries, as JSON values.
        feedback: 1, -1 or 0.
    """

    id: int
    session_id: str
    parent_id: int | None
    question: str
    answer: str
    status: TurnStatus
    created_at: float
    finished_at: float | None = None
    error: str = ""
    feedback: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one turn gave."""

    text: str
    session_id: str
    turn_id: int
    status: TurnStatus
    quotes: tuple[Quote, ...] = ()
    sources: tuple[str, ...] = ()
    searched: tuple[SearchedQuery, ...] = ()
    answerable: float = 0.0
    declined: bool = False
    marks: tuple[Mark, ...] = ()
    tokens: TokenReceipt | None = None
    memory: MemoryReceipt | None = None
    time: TimeReceipt = TimeReceipt()
    notices: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Queued:
    """The turn waits; *position* 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The evidence, before the first token."""

    quotes: tuple[Quote, ...]
    hits: tuple[Hit, ...]
    searched: tuple[SearchedQuery, ...]
    answerable: float
    turn_id: int


@dataclass(frozen=True, slots=True)
class Token:
    """More text of the answer (one or several tokens of the model)."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The turn is over and stored."""

    answer: Answer


Event = Queued | Retrieved | Token | Done


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest is.

    Attributes:
        file: The one being read, as named by the user.
        outcome: Of *file*: empty while it is being read, else ``added``, ``unchanged``, ``updated`` or ``refused``.
        chunks_done: In all files so far.
        remaining_s: Estimated, or None while unknown.
    """

    file: str
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    chunks_done: int
    chunks_per_s: float
    remaining_s: float | None
    outcome: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did. Each list holds sources as the user named them; *refused* maps a source to its reason."""

    added: Sequence[str] = ()
    updated: Sequence[str] = ()
    unchanged: Sequence[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    chunks_embedded: int = 0
    chunks_reused: int = 0
    seconds: float = 0.0
    cancelled: bool = False
