"""Chat models: our own decoding loop over torch, or an OpenAI-compatible server.

Importing this loads neither; ``load_chat_model`` does. How a local model runs, from the outside in::

    local.py        LocalChatModel: counts, starts, keeps what may be kept between turns
    generate.py     one answer: read the prompt, then step, draft and pick tokens until it ends
    chat_text.py    chat template, tokenizer, text that grows token by token
    sampling.py     which token comes next         lookup.py   drafts found in the prompt
    decoder.py      our forward pass for Llama-like models, its steps and its KV cache
    architecture.py what config.json says of such a model
    weights.py      safetensors files, mapped      quantized.py   the int8 weights kept beside them
    native/         the same forward pass in C, for small weights on x86-64
    hosted.py       every other architecture, through transformers
    remote.py       a model behind a URL
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .types import ChatModel, FinishReason, Generation, GenerationStats, Sampling

if TYPE_CHECKING:
    from assistant.models import ResolvedModel
    from assistant.worker import TorchWorker

__all__ = ["ChatModel", "FinishReason", "Generation", "GenerationStats", "Sampling", "load_chat_model"]


def load_chat_model(
    resolved: ResolvedModel,
    worker: TorchWorker,
    *,
    dtype: str = "auto",
    context_tokens: int = 0,
    prefix_cache_bytes: int = 0,
    device: str = "cpu",
    model_name: str = "",
    api_key: str = "",
) -> ChatModel:
    """Load a chat model.

    Args:
        resolved: Where it is; its kind is ``folder`` or ``url``.
        worker: The thread that does all torch work.
        dtype: ``int8``, ``bf16``, ``fp32`` or ``auto``: int8 to write, and to read what the CPU is fastest at.
        context_tokens: Context to run it with; 0 is what it was made for, at most 2048.
        prefix_cache_bytes: Most bytes of keys and values kept between turns; 0 is none.
        device: ``cpu`` or ``cuda``.
        model_name: Of a model behind a URL.
        api_key: For a model behind a URL.

    Raises:
        ModelBrokenError: The folder is incomplete, truncated or not a causal language model.
        ModelNotFoundError: There is no model to load (kind ``none``).
    """
    if resolved.kind == "url":
        from .remote import RemoteChatModel

        return RemoteChatModel(
            url=resolved.url, model_name=model_name or resolved.name, api_key=api_key, context_tokens=context_tokens
        )
    if resolved.kind != "folder" or resolved.path is None:
        from assistant.errors import ModelNotFoundError

        raise ModelNotFoundError("No chat model is chosen (model = none): answers are quotes only.")
    from .local import LocalChatModel

    return LocalChatModel(
        resolved.path,
        worker,
        name=resolved.name,
        dtype=dtype,
        context_tokens=context_tokens,
        prefix_cache_bytes=prefix_cache_bytes,
        device=device,
    )
