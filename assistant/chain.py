"""The turn in LangChain's terms: a retriever, a chat model, and the Runnables composed of them.

Each part works alone in anybody's chain. Knows the shapes of LangChain; does not know history, budgets or memory, which
reach it as the three steps that :func:`compose` strings together.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypedDict

from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator, RunnableLambda, RunnablePassthrough
from langchain_core.runnables.utils import AddableDict
from pydantic import ConfigDict

from .inference import ChatModel, Sampling
from .records import Answer, Done, Event, Hit, Message, Retrieved, Scope, Token
from .retrieval import Retrieval

_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class DocumentRetriever(BaseRetriever):
    """Our hybrid search as a LangChain retriever: ``invoke(query)`` gives ``Document`` s, best first."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    retrieval: Any
    scope: Scope = Scope()
    top_k: int = 8

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        retrieval: Retrieval = self.retrieval
        result = retrieval.search(query, top_k=self.top_k, scope=self.scope)
        return [as_document(hit) for hit in result.hits]


class LocalChatModel(BaseChatModel):
    """Our inference as a LangChain chat model.

    ``invoke`` and ``stream`` take messages of the roles system, user and assistant. Sampling follows *sampling*; a
    ``threading.Event`` passed as ``cancelled=`` stops it between two tokens.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    model: Any
    sampling: Any

    @property
    def _llm_type(self) -> str:
        return "thimble"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"name": self.model.name, "dtype": self.model.dtype, "context_tokens": self.model.context_tokens}

    def _stream(self, messages: list[BaseMessage], stop: list[str] | None = None,
                run_manager: CallbackManagerForLLMRun | None = None, *, cancelled: threading.Event | None = None,
                session_id: str | None = None, **kwargs: Any) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        if stop:
            raise ValueError("stop words are not supported; the model ends where its chat template says")
        model: ChatModel = self.model
        sampling: Sampling = self.sampling
        generation = model.start(as_messages(messages), sampling, cancelled, session_id=session_id)
        try:
            for text in generation:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
        finally:
            generation.close()
        stats = generation.stats
        usage = UsageMetadata(
            input_tokens=stats.prompt_tokens,
            output_tokens=stats.new_tokens,
            total_tokens=stats.prompt_tokens + stats.new_tokens,
        )
        last = AIMessageChunk(
            content="",
            usage_metadata=usage,
            response_metadata={"finish_reason": stats.finish_reason, "stats": stats},
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    def _generate(self, messages: list[BaseMessage], stop: list[str] | None = None,
                  run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any) -> ChatResult:  # fmt: skip
        text, last = "", AIMessageChunk(content="")
        for chunk in self._stream(messages, stop, run_manager, **kwargs):
            text += str(chunk.message.content)
            if isinstance(chunk.message, AIMessageChunk) and chunk.message.usage_metadata:
                last = chunk.message
        message = AIMessage(text, usage_metadata=last.usage_metadata, response_metadata=last.response_metadata)
        return ChatResult(generations=[ChatGeneration(message=message)])


class TurnInput(TypedDict, total=False):
    """What ``assistant.chain`` takes beside a bare question."""

    question: str
    session_id: str | None
    user: str


class TurnChain(Runnable[Any, dict[str, Any]]):
    """A whole turn, history and budgets included, as a Runnable: ``assistant.chain``.

    Input is the question, or a mapping with ``question`` and, if wanted, ``session_id`` and ``user``. Output is a
    mapping with LangChain's usual ``input``, ``context`` (a list of ``Document``) and ``answer``, and ours: ``quotes``,
    ``session_id``, ``turn_id`` and ``result`` (the whole ``Answer``). ``stream`` gives the same in pieces that add up.
    ``batch`` asks one after another, since there is one model.
    """

    def __init__(self, stream: Callable[..., Iterator[Event]]) -> None:
        self._events = stream

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Ask, and return everything at the end."""
        return self._call_with_config(self._whole, input, config, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Ask, and return pieces as they happen: first the context and quotes, then the answer, then the result."""

        def once() -> Iterator[Any]:
            yield input

        yield from self._transform_stream_with_config(once(), self._pieces, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Ask in a thread of its own."""
        return await asyncio.to_thread(self.invoke, input, config, **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None,
                      **kwargs: Any) -> AsyncIterator[dict[str, Any]]:  # fmt: skip
        """Like :meth:`stream`, each piece made in a thread, so that the event loop never waits."""
        pieces, end = self.stream(input, config, **kwargs), object()
        try:
            while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
                yield piece  # type: ignore[misc]  # `end` was compared by identity
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                await asyncio.to_thread(close)

    def batch(self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False,
              **kwargs: Any) -> list[Any]:  # fmt: skip
        """Ask one after another: side by side they would only wait for the one model, and overflow its queue."""
        configs = config if isinstance(config, list) else [config] * len(inputs)
        results: list[Any] = []
        for value, one in zip(inputs, configs, strict=True):
            try:
                results.append(self.invoke(value, one, **kwargs))
            except Exception as exc:
                if not return_exceptions:
                    raise
                results.append(exc)
        return results

    async def abatch(self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False,
                     **kwargs: Any) -> list[Any]:  # fmt: skip
        """Like :meth:`batch`, in a thread."""
        return await asyncio.to_thread(self.batch, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _whole(self, value: Any) -> dict[str, Any]:
        total = AddableDict()
        for piece in self._pieces(iter([value])):
            total = total + AddableDict(piece)
        return dict(total)

    def _pieces(self, values: Iterator[Any]) -> Iterator[dict[str, Any]]:
        for value in values:
            request = _request(value)
            yield AddableDict(input=request["question"])
            events = self._events(**request)
            try:
                for event in events:
                    piece = _piece(event)
                    if piece:
                        yield AddableDict(piece)
            finally:
                events.close()  # type: ignore[attr-defined]  # a generator: closing it ends the turn as stopped


def compose(find: Callable[[Any], Any], fit: Callable[[Any], Any],
            write: Callable[[Iterator[Any]], Iterator[str]]) -> Runnable[Any, Any]:  # fmt: skip
    """String the three steps of a turn together: find evidence, fit the prompt, write the answer.

    Streaming gives ``{"evidence": ...}`` as soon as it is found, then ``{"prompt": ...}``, then ``{"answer": piece}``.
    """
    return (
        RunnablePassthrough.assign(evidence=RunnableLambda(find))
        | RunnablePassthrough.assign(prompt=RunnableLambda(fit))
        | RunnablePassthrough.assign(answer=RunnableGenerator(write))
    )


def as_document(hit: Hit) -> Document:
    """Return a hit as a LangChain ``Document`` with its place and score as metadata."""
    chunk = hit.chunk
    places = {"page": chunk.page, "line": chunk.line, "row": chunk.row, "heading": chunk.heading or None}
    metadata: dict[str, Any] = {
        "source": hit.document.source,
        "document_id": chunk.document_id,
        "start": chunk.start,
        "end": chunk.end,
        "score": hit.score,
    }
    metadata.update({name: value for name, value in places.items() if value is not None})
    return Document(id=chunk.id, page_content=chunk.text, metadata=metadata)


def as_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Return LangChain's messages as our own.

    Raises:
        ValueError: A role that chat templates don't know, or content that is not text.
    """
    result: list[Message] = []
    for message in messages:
        role = _ROLES.get(message.type)
        if role is None:
            raise ValueError(f"a message of type {message.type!r} can't be put to this model; use system, human or ai")
        if not isinstance(message.content, str):
            raise ValueError("this model reads text only; the message has other content")
        result.append({"role": role, "content": message.content})  # type: ignore[typeddict-item]
    return result


def _request(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"question": value}
    if isinstance(value, dict) and isinstance(value.get("question", value.get("input")), str):
        known = {key: value[key] for key in ("session_id", "user") if value.get(key) is not None}
        return {"question": value.get("question", value.get("input")), **known}
    raise TypeError("the chain takes a question, or a mapping with question and, if wanted, session_id and user")


def _piece(event: Event) -> dict[str, Any]:
    if isinstance(event, Retrieved):
        return {"context": [as_document(hit) for hit in event.hits], "quotes": list(event.quotes)}
    if isinstance(event, Token):
        return {"answer": event.text}
    if isinstance(event, Done):
        answer: Answer = event.answer
        return {"session_id": answer.session_id, "turn_id": answer.turn_id, "result": answer}
    return {}
