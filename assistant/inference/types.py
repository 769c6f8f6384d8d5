"""The values and the protocol of chat models: what any of them takes, gives and tells about a turn.

Knows no library: the budget, the chain and the tests depend on this and not on torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from assistant.records import Message

FinishReason = Literal["stop", "length", "stopped"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is picked.

    Attributes:
        max_new_tokens: The longest answer, in the model's tokens; the end of the context may cut it shorter.
        temperature: 0 picks the likeliest token.
        top_p: Sample from the smallest set of tokens that has this probability.
        top_k: Sample from this many likeliest tokens; 0 is all.
        repetition_penalty: Above 1, tokens of the prompt and of the answer become less likely (CTRL, Keskar 2019).
        prompt_bias: Added to the logits of tokens that stand in the prompt, earlier turns aside: above 0, the answer
            keeps to its words.
        seed: The same seed, prompt and settings give the same answer.
        speculation: Propose continuations found in the prompt; changes the speed only.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    prompt_bias: float = 0.0
    seed: int = 0
    speculation: bool = True


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """What one generation took.

    Attributes:
        prompt_tokens: Length of the prompt.
        cached_tokens: How many of these were not read again, because their keys and values were kept.
        new_tokens: Tokens written, the end token not counted.
        prefill_s: Seconds until the first token was picked.
        decode_s: Seconds from there to the end.
        drafted: Tokens that speculation proposed.
        accepted: How many of these were right.
        steps: Forward passes of decoding; ``new_tokens / steps`` is what speculation gained.
        finish_reason: ``stop`` the model ended; ``length`` it reached the limit; ``stopped`` it was asked to stop.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    finish_reason: FinishReason = "stopped"


@runtime_checkable
class Generation(Protocol):
    """A running answer: iterate it for pieces of text; ``stats`` is final when the iteration has ended."""

    @property
    def stats(self) -> GenerationStats:
        """What it took so far."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Give the pieces of text."""
        ...

    def __next__(self) -> str:
        """Give the next piece of text, never an empty one."""
        ...

    def close(self) -> None:
        """End early and free what the generation holds."""
        ...


@runtime_checkable
class ChatModel(Protocol):
    """A model that answers messages.

    Attributes:
        name: For people.
        dtype: What its weights are in: ``int8``, ``bf16``, ``fp32``; empty where that is not ours to know.
        context_tokens: Longest prompt and answer together.
        estimated: True where token counts are estimates, the tokenizer being out of reach.
    """

    name: str
    dtype: str
    context_tokens: int
    estimated: bool

    @property
    def loaded(self) -> bool:
        """Whether its weights are in reach without loading them first."""
        ...

    def count(self, text: str) -> int:
        """Count the tokens of *text* alone."""
        ...

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Count the tokens of the whole prompt: chat template and the opening of the answer included."""
        ...

    def start(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        stop: threading.Event | None = None,
        session_id: str | None = None,
    ) -> Generation:
        """Begin an answer.

        Args:
            messages: The conversation; the last is the user's.
            sampling: How tokens are picked.
            stop: Set it from any thread to end the answer at the next token, or while the prompt is being read.
            session_id: Whose prompt prefix may be kept and used again.

        Raises:
            ContextOverflowError: The prompt leaves no room for a single token.
            ModelError: The model can't be loaded.
        """
        ...

    def memory_estimate(self, context_tokens: int) -> dict[str, int]:
        """Say in bytes what a turn of *context_tokens* takes.

        Returns:
            ``weights_mapped`` (clean file pages the kernel may take back), ``weights_anonymous``, ``kv_cache``,
            ``prefix_cache`` (at most) and ``activations``.
        """
        ...

    def release_caches(self) -> int:
        """Free what is kept between turns; say how many bytes that was."""
        ...

    def unload(self) -> None:
        """Free the weights; the next turn loads them again."""
        ...

    def close(self) -> None:
        """Free everything, for good."""
        ...
