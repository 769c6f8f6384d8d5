"""One answer, token by token: read the prompt, then draft, step and pick until it ends.

Knows any model through ``Engine``; runs on the torch worker, one ``next`` at a time, so that between two of them other
work is served and a stop is seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from .chat_text import ChatText, TextGrowth
from .lookup import PromptLookup
from .sampling import Picker
from .types import FinishReason, GenerationStats, Sampling

_NARROW, _WIDE = 4, 8
"""Tokens of a step, the certain one included: wide after a draft that was all right."""


class Engine(Protocol):
    """A model as the loop needs it. A cache has ``length``: set it lower to forget the newest tokens.

    Attributes:
        max_step: Tokens of a step at most.
        own_threads: Whether its steps run on threads of their own, which are still awake when tokens are picked.
    """

    max_step: int
    own_threads: bool

    def new_cache(self, tokens: int) -> Any:
        """Make room for *tokens*."""
        ...

    def read(self, tokens: Sequence[int], cache: Any) -> Iterator[torch.Tensor | None]:
        """Read a prompt in parts, giving None after each but the last, then the last token's logits."""
        ...

    def step(self, tokens: Sequence[int], cache: Any) -> torch.Tensor:
        """Run a few tokens; return a row of logits for each."""
        ...

    def step_room(self, cache: Any) -> int:
        """Tokens that the next step may run at most."""
        ...


class Decoding:
    """The state of one answer.

    Args:
        engine: The model.
        text: Its tokenizer.
        prompt: The prompt's tokens.
        sampling: How tokens are picked.
        most_tokens: Longest answer.
        stop: Ends it early when set.
        lease: Gives the cache and how many of the prompt's tokens it already holds; called on the worker.
        give_back: Takes the cache and the tokens it holds when the answer is over.
    """

    def __init__(
        self,
        engine: Engine,
        text: ChatText,
        prompt: list[int],
        sampling: Sampling,
        *,
        near: list[int],
        most_tokens: int,
        stop: threading.Event,
        lease: Callable[[], tuple[Any, int]],
        give_back: Callable[[Any, list[int]], None],
    ) -> None:
        self._engine = engine
        self._text = text
        self._prompt = prompt
        self._near = near
        self._sampling = sampling
        self._most = most_tokens
        self._stop = stop
        self._lease = lease
        self._give_back = give_back
        self._cached = self._new = self._drafted = self._accepted = self._steps = 0
        self._began = self._first = self._ended = 0.0
        self._reason: FinishReason = "stopped"

    @property
    def stats(self) -> GenerationStats:
        """What it took so far."""
        now = self._ended or time.perf_counter()
        return GenerationStats(
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached,
            new_tokens=self._new,
            prefill_s=(self._first or now) - self._began if self._began else 0.0,
            decode_s=now - self._first if self._first else 0.0,
            drafted=self._drafted,
            accepted=self._accepted,
            steps=self._steps,
            finish_reason=self._reason,
        )

    def run(self) -> Iterator[str]:
        """Give a piece of text, often an empty one, after each part of the work."""
        self._began = time.perf_counter()
        cache, self._cached = self._lease()
        growth = TextGrowth(self._text)
        said: list[int] = []
        try:
            logits = None
            for logits in self._engine.read(self._prompt[self._cached :], cache):
                if self._stop.is_set():
                    return
                if logits is None:
                    yield ""
            assert logits is not None
            for tokens in self._tokens(cache, logits):
                piece = ""
                for token in tokens:
                    said.append(token)
                    piece += growth.add(token)
                self._new = len(said)
                yield piece
            yield growth.rest()
        finally:
            self._ended = time.perf_counter()
            # The last token was picked and not run: its keys and values are not in the cache.
            self._give_back(cache, (self._prompt + said)[: cache.length])

    def _tokens(self, cache: Any, logits: torch.Tensor) -> Iterator[list[int]]:
        """Give the tokens of the answer as they are certain, one or several at a time."""
        picker = Picker(self._sampling, self._prompt, logits.shape[-1], self._near, alone=self._engine.own_threads)
        limit = self._engine.max_step if self._sampling.speculation else 1
        lookup = PromptLookup(self._prompt) if limit > 1 else None
        left, width = self._most, min(limit, _NARROW)
        token = picker.pick(logits)
        self._first = time.perf_counter()
        accepted = [token]
        while True:
            for at, token in enumerate(accepted):
                if token in self._text.end_ids:
                    self._reason = "stop"
                    yield accepted[:at]
                    return
            left -= len(accepted)
            if left <= 0:
                self._reason = "length"
                yield accepted
                return
            if lookup is not None:
                for token in accepted:
                    lookup.add(token)
            yield accepted
            if self._stop.is_set():
                self._reason = "stopped"
                return
            drafted: list[int] = []
            if lookup is not None:
                drafted = lookup.draft(min(width, left, self._engine.step_room(cache)) - 1)
            accepted = self._verify(picker, accepted[-1], drafted, cache)
            if drafted:  # trust what comes right: the next is longer after a draft that was all right
                width = min(limit, _WIDE if len(accepted) > len(drafted) else _NARROW)

    def _verify(self, picker: Picker, last: int, drafted: list[int], cache: Any) -> list[int]:
        """Run the last token and the draft; keep what the model would have said itself, and one token more."""
        start = cache.length
        rows = self._engine.step([last, *drafted], cache)
        self._steps += 1
        self._drafted += len(drafted)
        picked = picker.pick_all(rows) if picker.plain else None
        accepted = []
        for at in range(len(drafted) + 1):
            token = picked[at] if picked else picker.pick(rows[at])
            accepted.append(token)
            if at == len(drafted) or token != drafted[at]:
                break
        self._accepted += len(accepted) - 1
        cache.length = start + len(accepted)
        return accepted
