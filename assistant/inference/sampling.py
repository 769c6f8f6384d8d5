"""Which token comes next. Works on one row of logits in place; knows nothing of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .types import Sampling

_NUCLEUS_FIRST = 64
"""Tokens looked at first for the nucleus: it is nearly always among them, and sorting 50,000 takes 2 ms."""


@contextmanager
def one_thread(alone: bool = True) -> Iterator[None]:
    """Have torch use one thread, if *alone*."""
    threads = torch.get_num_threads()
    if not alone or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Picker:
    """Picks tokens for one answer.

    Args:
        sampling: How.
        prompt: The prompt's tokens, which the repetition penalty counts as said.
        vocab: Size of a row of logits.
        near: The tokens of the prompt that the bias makes likelier; all by default.
        alone: Use one thread. torch's second one takes longer to wake than a row takes, and it meets the kernels'
            threads on their cores: a token took 13 ms instead of 8.
    """

    def __init__(
        self, sampling: Sampling, prompt: list[int], vocab: int, near: list[int] | None = None, *, alone: bool = False
    ) -> None:
        self._alone = alone
        self._sampling = sampling
        self._greedy = sampling.temperature <= 0 or sampling.top_k == 1
        self._random = torch.Generator().manual_seed(sampling.seed)
        self._said: torch.Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self._said = torch.zeros(vocab, dtype=torch.bool)
            self._said[torch.tensor(prompt)] = True
        self._bias: torch.Tensor | None = None
        if sampling.prompt_bias:
            self._left = Counter(prompt if near is None else near)
            self._bias = torch.zeros(vocab)
            self._bias[torch.tensor([*self._left])] = sampling.prompt_bias

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is always picked, so that a whole batch of rows can be picked at once."""
        return self._greedy and self._said is None and self._bias is None

    def pick_all(self, rows: torch.Tensor) -> list[int]:
        """Pick the likeliest token of each row; for ``plain`` pickers."""
        with one_thread(self._alone):
            found: list[int] = rows.argmax(-1).tolist()
        return found

    def pick(self, logits: torch.Tensor) -> int:
        """Pick from one row of logits, which may be overwritten."""
        with one_thread(self._alone):
            return self._pick(logits)

    def _pick(self, logits: torch.Tensor) -> int:
        if self._bias is not None:
            logits += self._bias
        if self._said is not None:
            logits = self._penalised(logits)
        token = int(logits.argmax()) if self._greedy else self._sample(logits.float())
        if self._said is not None:
            self._said[token] = True
        if self._bias is not None and token in self._left:
            self._left[token] -= 1
            if not self._left[token]:
                self._bias[token] = 0.0
        return token

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        penalty = self._sampling.repetition_penalty
        said = self._said
        assert said is not None
        values = logits[said]
        logits[said] = torch.where(values < 0, values * penalty, values / penalty)
        return logits

    def _sample(self, logits: torch.Tensor) -> int:
        sampling = self._sampling
        logits.div_(sampling.temperature)
        if sampling.top_k:
            values, ids = logits.topk(min(sampling.top_k, logits.numel()))
            return int(ids[self._draw(values.softmax(-1), nucleus=True)])
        weights = logits.softmax(-1)
        if sampling.top_p >= 1:
            return self._draw(weights, nucleus=False)
        values, ids = weights.topk(min(_NUCLEUS_FIRST, weights.numel()))
        if float(values.sum()) < sampling.top_p:
            values, ids = weights.sort(descending=True)
        return int(ids[self._draw(values, nucleus=True)])

    def _draw(self, weights: torch.Tensor, *, nucleus: bool) -> int:
        """Draw an index by inverting the cumulative distribution: one random number a token, whatever was drafted.

        Args:
            weights: Of shape [n]; sorted downwards where *nucleus* is to be cut from them.
            nucleus: Whether to keep only the smallest head that has ``top_p``.
        """
        cumulative = weights.cumsum(-1)
        total = float(cumulative[-1])
        if nucleus and self._sampling.top_p < 1:
            total = float(
                cumulative[int(torch.searchsorted(cumulative, self._sampling.top_p).clamp_(max=weights.numel() - 1))]
            )
        at = torch.rand((), generator=self._random, dtype=torch.float64).item() * total
        return int(torch.searchsorted(cumulative, at, right=True).clamp_(max=weights.numel() - 1))
