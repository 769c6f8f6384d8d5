"""Old turns that matter to a question, found again after they left the window.

Knows ranking; what is stored, and for whom, is the history's business. Works on messages: a turn has two, its question
and its answer. A message alone says too little ("Yes, since May!"), so it is scored together with its neighbours:

* words: BM25 (Robertson and Zaragoza, 2009) over a window of five messages whose counts weigh less the farther they
  stand, divided by the most the question could reach, so that a score means the same in every session;
* meaning: the cosine of question and message, smoothed over the neighbours;
* who speaks, where the question names a speaker.

Weights were chosen on half of the LoCoMo conversations, see ``bench/recall.py``. Vectors are kept as int8 in the
history database and read in passing: nothing of them stays in RAM.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .history import History, RecallIndex
from .records import LOCAL_USER, Quote, Turn
from .sentences import spans

Floats = NDArray[np.float32]

_AROUND = {-2: 0.3, -1: 0.8, 0: 1.0, 1: 0.4, 2: 0.2}  # weight of a neighbour's words, by its distance
_AROUND_DENSE = {-1: 0.5, 0: 1.0, 1: 0.25}
_K1, _B = 0.7, 0.5  # BM25: how soon repetition stops to count, how much length does
_DENSE, _SPEAKER, _QUESTION = 0.6, 0.1, -0.1
_LONGEST = 2.0  # times the mean length: what is longer counts as that, or a pasted page could never be found
_COMMON = 0.25  # a word in more than this share of messages says nothing about where to look
_FEW_MESSAGES = 40  # with fewer, shares say nothing
MIN_SCORE = 0.55
"""Below this a turn is left where it is: on LoCoMo it lets 94 % of right finds pass, and 16 % of finds for questions
that belong to another conversation."""

_BEST = 64  # messages looked at closely
_LIKELY = 16  # messages whose words fit best; they get a vector at once
_CATCH_UP = 16  # turns embedded in passing by one search
_EMBED_CHARS = 1500  # more than any embedder's context here would read
_QUOTE_CHARS = 400


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOP = _words(
    "a an the is are was were be been being am do does did doing have has had having what which who whom whose when "
    "where why how that this these those of in on at to for from by with about as into and or but if then than so not "
    "no nor it its he she they them him his her hers their theirs i me my mine you your yours we us our ours can could "
    "will would shall should may might must there here s t d ll re ve m"
)
_SPEAKER_NAME = re.compile(r"\s*([^\W\d_][\w .'’-]{0,30}):\s")
_FIRST_PERSON, _SECOND_PERSON = frozenset({"i", "me", "my", "mine"}), frozenset({"you", "your", "yours"})


class Embeds(Protocol):
    """What recall needs of the embedder."""

    @property
    def fingerprint(self) -> str:
        """Which model made a vector, and how."""
        ...

    def embed(self, texts: Sequence[str], *, batch_size: int = 8) -> Floats:
        """Return one vector of length 1 for each text."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A message that a search found: the question (part 0) or the answer (part 1) of a turn."""

    turn: Turn
    part: int
    score: float

    @property
    def text(self) -> str:
        """What was said."""
        return self.turn.answer if self.part else self.turn.question


class Recall:
    """Hybrid search over the old turns of a user."""

    def __init__(self, history: History, embedder: Embeds) -> None:
        self._index: RecallIndex = history.recall_index
        self._embedder = embedder
        self._lock = threading.Lock()
        self._line: _Line | None = None

    def search(self, question: str, *, turns: Iterable[int] = (), user: str = LOCAL_USER,
               session_id: str | None = None, across_sessions: bool = False, limit: int = 3,
               min_score: float = MIN_SCORE) -> list[Quote]:  # fmt: skip
        """Return the old turns that matter to *question*, best first, as quotes.

        Args:
            question: As asked.
            turns: Ids of turns not to look for: those in the window, and the one being asked.
            user: Whose turns.
            session_id: Where the question is asked.
            across_sessions: Look in the user's other sessions too.
            limit: Most quotes to return.
            min_score: Leave out what fits worse.
        """
        words = [stem for stem in self._index.stems(question) if stem]
        found = self.rank(question, turns=turns, user=user, session_id=None if across_sessions else session_id,
                          limit=limit, min_score=min_score)  # fmt: skip
        titles = self._index.titles(user, (hit.turn.session_id for hit in found))
        return [
            self._quote(number, hit, words, titles[hit.turn.session_id], elsewhere=hit.turn.session_id != session_id)
            for number, hit in enumerate(found, 1)
        ]

    def rank(self, question: str, *, turns: Iterable[int] = (), user: str = LOCAL_USER, session_id: str | None = None,
             limit: int = 10, min_score: float = 0.0) -> list[Found]:  # fmt: skip
        """Return messages, best first; *session_id* None looks in all sessions of the user."""
        hidden = set(turns)
        with self._lock:
            line = self._current_line(user, session_id)
        open_slots = line.slots_without(hidden)
        if not open_slots.any():
            return []
        coverage = self._coverage(question, line, user, session_id)
        likely = np.argsort(-np.where(open_slots, coverage, -1), kind="stable")[:_LIKELY]
        likely_ids = [int(line.turn_ids[slot // 2]) for slot in likely if coverage[slot] > 0]
        cosines = self._cosines(question, line, hidden, likely_ids, user, session_id)
        scores = coverage + _DENSE * cosines
        scores[~open_slots] = -np.inf
        best = np.argsort(-scores, kind="stable")[: max(_BEST, 2 * limit)]
        best = best[np.isfinite(scores[best])]
        texts = self._index.turns(user, (int(line.turn_ids[slot // 2]) for slot in best))
        asked = set(re.findall(r"\w+", question.lower()))
        found = []
        for slot in best:
            turn = texts.get(int(line.turn_ids[slot // 2]))
            if turn is None or turn.status == "running" or (slot % 2 and turn.details.get("declined")):
                continue
            hit = Found(turn, int(slot % 2), 0.0)
            if hit.text.strip():
                score = float(scores[slot]) + _bonus(hit, asked)
                found.append(Found(turn, hit.part, score))
        found.sort(key=lambda hit: -hit.score)
        return [hit for hit in found if hit.score >= min_score][:limit]

    def index(self, user: str = LOCAL_USER, session_id: str | None = None, *,
              progress: Callable[[int, int], None] | None = None) -> int:  # fmt: skip
        """Embed all turns of a session (or of the user) that have no vectors yet; return how many.

        Needed by nobody: a search embeds the newest such turns in passing. It saves that time after an import.
        """
        with self._lock:
            line = self._current_line(user, session_id)
        todo = self._without_vectors(line, set(), user, session_id)
        for start in range(0, len(todo), _CATCH_UP):
            self._embed(todo[start : start + _CATCH_UP], user)
            if progress is not None:
                progress(min(start + _CATCH_UP, len(todo)), len(todo))
        return len(todo)

    # Words

    def _coverage(self, question: str, line: _Line, user: str, session_id: str | None) -> Floats:
        """Return BM25 of each message with its neighbours, as a share of the most that could be reached."""
        plain = re.findall(r"\w+", question.lower())
        stems = self._index.stems(" ".join(word for word in plain if word not in _STOP))
        counts: list[Floats] = []
        for stem in stems:
            count = np.zeros(line.length, np.float32)
            rows = self._index.occurrences(stem, user, session_id)
            if rows:
                slots = line.slots([row[0] for row in rows], [row[1] for row in rows])
                count[slots[slots >= 0]] = np.array([row[2] for row in rows], np.float32)[slots >= 0]
            counts.append(count)
        messages = max(line.messages, 1)
        frequencies = [int(np.count_nonzero(count)) for count in counts]
        if messages >= _FEW_MESSAGES and any(0 < number <= _COMMON * messages for number in frequencies):
            kept = [number <= _COMMON * messages for number in frequencies]
            counts = [count for count, keep in zip(counts, kept, strict=True) if keep]
            frequencies = [number for number, keep in zip(frequencies, kept, strict=True) if keep]
        total, most = np.zeros(line.length, np.float32), 1e-9
        for count, number in zip(counts, frequencies, strict=True):
            rarity = float(np.log(1 + (messages - number + 0.5) / (number + 0.5)))
            most += rarity * (_K1 + 1)
            if number:
                near = _spread(count, _AROUND)
                total += rarity * near * (_K1 + 1) / (near + _K1 * (1 - _B + _B * line.relative_sizes))
        return total / np.float32(most)

    # Meaning

    def _cosines(self, question: str, line: _Line, hidden: set[int], likely: Sequence[int], user: str,
                 session_id: str | None) -> Floats:  # fmt: skip
        """Return the cosine of the question to each message, smoothed over its neighbours.

        Turns that have no vector yet get one in passing: those whose words fit, then the newest, up to a limit.
        """
        todo = self._without_vectors(line, hidden, user, session_id)
        first = set(todo).intersection(likely)
        self._embed([*first, *(turn_id for turn_id in todo if turn_id not in first)][:_CATCH_UP], user)
        asked = self._embedder.embed([question])[0].astype(np.float32)
        cosines = np.zeros(line.length, np.float32)
        if self._index.made_by() != self._embedder.fingerprint:
            return cosines
        for turn_ids, blob in self._index.vectors(user, session_id):
            packed = np.frombuffer(blob, _packed(len(asked))).reshape(-1, 2)
            values = (packed["values"].astype(np.float32) @ asked) * packed["scale"]
            for part in (0, 1):
                slots = line.slots(turn_ids, [part] * len(turn_ids))
                cosines[slots[slots >= 0]] = values[slots >= 0, part]
        return _spread(cosines, _AROUND_DENSE) / np.float32(sum(_AROUND_DENSE.values()))

    def _without_vectors(self, line: _Line, hidden: set[int], user: str, session_id: str | None) -> list[int]:
        """Return the turns to embed, newest first."""
        there: set[int] = set(hidden)
        if self._index.made_by() == self._embedder.fingerprint:
            there.update(self._index.embedded(user, session_id))
        return [turn_id for turn_id in reversed(line.turn_ids.tolist()) if turn_id > 0 and turn_id not in there]

    def _embed(self, turn_ids: Sequence[int], user: str) -> None:
        turns = [turn for turn in self._index.turns(user, turn_ids).values() if turn.status != "running"]
        if not turns:
            return
        texts = [text[:_EMBED_CHARS] or " " for turn in turns for text in (turn.question, turn.answer)]
        vectors = self._embedder.embed(texts)
        packed = np.zeros(len(texts), _packed(vectors.shape[1]))
        packed["scale"] = np.abs(vectors).max(axis=1) / 127
        packed["values"] = np.rint(vectors / np.maximum(packed["scale"][:, None], 1e-12))
        packed["scale"][[not text.strip() for text in texts]] = 0  # nothing was said: no cosine
        rows = ((turn.id, packed[2 * place : 2 * place + 2].tobytes()) for place, turn in enumerate(turns))
        self._index.keep_vectors(user, rows, self._embedder.fingerprint)

    # The line of messages

    def _current_line(self, user: str, session_id: str | None) -> _Line:
        """Return the line of messages, kept from the last search when nothing changed since."""
        state = (user, session_id, self._index.state(user, session_id))
        if self._line is None or self._line.state != state:
            self._line = _Line.read(self._index, user, session_id, state)
        return self._line

    def _quote(self, number: int, hit: Found, words: Sequence[str], title: str, *, elsewhere: bool) -> Quote:
        start, end = self._best_span(hit.text, set(words))
        turn = hit.turn
        return Quote(
            number=number, text=hit.text[start:end], name=title if elsewhere else "Earlier in this conversation",
            score=min(1.0, max(0.0, hit.score)), start=start, end=end, context=hit.text[:4000], kind="turn",
            session_id=turn.session_id, turn_id=turn.id, said_by="assistant" if hit.part else "user",
            said_at=(turn.finished_at if hit.part else None) or turn.created_at,
        )  # fmt: skip

    def _best_span(self, text: str, words: set[str]) -> tuple[int, int]:
        """Return the whole text when it is short, else its sentences with most of the words, as far as fits."""
        sentences = spans(text)
        if len(text) <= _QUOTE_CHARS or not sentences:
            return 0, min(len(text), _QUOTE_CHARS) if not sentences else len(text)
        hits = [len(words.intersection(self._index.stems(text[start:end]))) for start, end in sentences]
        best = max(range(len(sentences)), key=lambda place: (hits[place], -place))
        start, end = sentences[best]
        for _, later in sentences[best + 1 :]:
            if later - start > _QUOTE_CHARS:
                break
            end = later
        return start, min(end, start + 2 * _QUOTE_CHARS)


@dataclass(frozen=True)
class _Line:
    """All messages in the order they were said: two slots a turn, and empty ones between sessions.

    Attributes:
        turn_ids: By slot pair; 0 where it is empty.
        relative_sizes: Words of a message and its neighbours, against the mean.
        messages: How many messages there are.
    """

    state: Any
    turn_ids: NDArray[np.int64]
    relative_sizes: Floats
    messages: int
    sorted_ids: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def read(cls, index: RecallIndex, user: str, session_id: str | None, state: Any) -> _Line:
        ids: list[int] = []
        for branch in index.branches(user, session_id):
            ids.extend((0, *branch.turn_ids) if ids else branch.turn_ids)
        turn_ids = np.array(ids, np.int64)
        sizes = index.sizes(user, session_id)
        words = np.array([sizes.get(turn_id, (0, 0)) for turn_id in ids], np.float32).reshape(-1)
        near = _spread(words, _AROUND)
        mean = float(near[words > 0].mean()) if (words > 0).any() else 1.0
        order = np.argsort(turn_ids, kind="stable")
        relative = np.minimum(near / np.float32(mean), _LONGEST)
        return cls(state, turn_ids, relative, int((words > 0).sum()), turn_ids[order], order)

    @property
    def length(self) -> int:
        return 2 * len(self.turn_ids)

    def slots(self, turn_ids: Sequence[int], parts: Sequence[int]) -> NDArray[np.int64]:
        """Return the slot of each message; -1 for those not in the line."""
        wanted = np.array(turn_ids, np.int64)
        if not len(self.sorted_ids):
            return np.full(len(wanted), -1, np.int64)
        place = np.searchsorted(self.sorted_ids, wanted).clip(0, len(self.sorted_ids) - 1)
        slots = 2 * self.order[place] + np.array(parts, np.int64)
        return np.where(self.sorted_ids[place] == wanted, slots, -1)

    def slots_without(self, hidden: set[int]) -> NDArray[np.bool_]:
        """Return which slots belong to turns that may be found."""
        return np.repeat((self.turn_ids > 0) & ~np.isin(self.turn_ids, list(hidden)), 2)


def _spread(values: Floats, weights: dict[int, float]) -> Floats:
    """Return each value with its neighbours' added, weighted by where they stand."""
    spread = np.zeros_like(values)
    for offset, weight in weights.items():
        if offset == 0:
            spread += weight * values
        elif offset < 0:
            spread[-offset:] += weight * values[:offset]
        else:
            spread[:-offset] += weight * values[offset:]
    return spread


def _packed(dimension: int) -> np.dtype[Any]:
    """Return how a vector is stored: int8 values times one scale."""
    return np.dtype([("scale", "<f4"), ("values", "i1", (dimension,))])


def _bonus(hit: Found, asked: set[str]) -> float:
    """Return what is added for who speaks: the one the question is about; and a question rarely answers one."""
    bonus = _QUESTION if hit.text.rstrip().endswith("?") else 0.0
    name = _SPEAKER_NAME.match(hit.text)
    if name is not None:
        return bonus + (_SPEAKER if asked.intersection(re.findall(r"\w+", name[1].lower())) else 0.0)
    meant = asked & (_SECOND_PERSON if hit.part else _FIRST_PERSON)
    return bonus + (_SPEAKER if meant else 0.0)
