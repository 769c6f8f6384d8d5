"""A model behind an OpenAI-compatible URL: Ollama, llama.cpp's server, vLLM. Needs the extra ``thimble[remote]``.

Its tokenizer is out of reach, so counts are estimates and say so.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from assistant.errors import InferenceError, ModelError
from assistant.records import Message

from .types import FinishReason, GenerationStats, Sampling

_CHARACTERS_PER_TOKEN = 3.5
"""On the safe side: English runs at 4 to 4.5 characters a token, code and other languages at less."""
_TEMPLATE_TOKENS = 8
"""What a chat template puts around one message, about."""
DEFAULT_CONTEXT = 4096


class RemoteChatModel:
    """A chat model on a server; see ``types.ChatModel``.

    Raises:
        ModelError: langchain-openai is not installed.
    """

    estimated = True
    dtype = ""
    loaded = True

    def __init__(self, *, url: str, model_name: str, api_key: str = "", context_tokens: int = 0) -> None:
        try:
            from langchain_openai import ChatOpenAI
            from pydantic import SecretStr
        except ImportError as exc:
            raise ModelError(f"The model at {url} needs one more package: pip install langchain-openai.") from exc
        self.name = model_name or url
        self.url = url
        self.context_tokens = context_tokens or DEFAULT_CONTEXT
        self._client: Any = ChatOpenAI(
            base_url=url,
            model=model_name or "default",
            api_key=SecretStr(api_key or "none"),
            max_retries=1,
            stream_usage=True,
        )

    def count(self, text: str) -> int:
        """Estimate the tokens of *text*."""
        return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Estimate the tokens of the whole prompt."""
        return sum(self.count(message["content"]) + _TEMPLATE_TOKENS for message in messages) + _TEMPLATE_TOKENS

    def start(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        stop: threading.Event | None = None,
        session_id: str | None = None,
    ) -> RemoteGeneration:
        """Begin an answer; see ``types.ChatModel.start``."""
        sampling = sampling or Sampling()
        options: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        pieces = self._client.stream([(message["role"], message["content"]) for message in messages], **options)
        return RemoteGeneration(self.url, pieces, stop or threading.Event(), self.count_prompt(messages))

    def memory_estimate(self, context_tokens: int) -> dict[str, int]:
        """Say that nothing of it is in this process."""
        return {"weights_mapped": 0, "weights_anonymous": 0, "kv_cache": 0, "prefix_cache": 0, "activations": 0}

    def release_caches(self) -> int:
        """Free nothing: nothing is kept here."""
        return 0

    def unload(self) -> None:
        """Do nothing: the server holds the weights."""

    def close(self) -> None:
        """Do nothing: the client holds no connection open between turns that would not close itself."""


class RemoteGeneration:
    """A running answer of a server; see ``types.Generation``."""

    def __init__(self, url: str, pieces: Iterator[Any], stop: threading.Event, prompt_tokens: int) -> None:
        self._url = url
        self._pieces = pieces
        self._stop = stop
        self._prompt_tokens = prompt_tokens
        self._new_tokens = 0
        self._began = time.perf_counter()
        self._first = self._ended = 0.0
        self._reason: FinishReason = "stopped"

    @property
    def stats(self) -> GenerationStats:
        """What it took so far; token counts as the server reports them, else estimates."""
        now = self._ended or time.perf_counter()
        return GenerationStats(
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._new_tokens,
            prefill_s=(self._first or now) - self._began,
            decode_s=now - self._first if self._first else 0.0,
            steps=self._new_tokens,
            finish_reason=self._reason,
        )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Give the next piece of text."""
        while True:
            if self._stop.is_set():
                self.close()
                raise StopIteration
            try:
                chunk = next(self._pieces)
            except StopIteration:
                self._ended = self._ended or time.perf_counter()
                raise
            except Exception as exc:  # whatever the client and its HTTP library raise
                self._ended = time.perf_counter()
                raise InferenceError(f"The model at {self._url} failed: {exc}. Is the server running?") from exc
            self._note(chunk)
            text = chunk.content if isinstance(chunk.content, str) else ""
            if text:
                self._first = self._first or time.perf_counter()
                return text

    def close(self) -> None:
        """End early: closing the stream closes the connection, and the server stops."""
        self._ended = self._ended or time.perf_counter()
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()

    def _note(self, chunk: Any) -> None:
        usage = getattr(chunk, "usage_metadata", None)
        if usage:
            self._prompt_tokens = usage.get("input_tokens") or self._prompt_tokens
            self._new_tokens = usage.get("output_tokens") or self._new_tokens
        elif chunk.content:
            self._new_tokens += 1
        reason = (getattr(chunk, "response_metadata", None) or {}).get("finish_reason")
        if reason:
            self._reason = "length" if reason == "length" else "stop"
