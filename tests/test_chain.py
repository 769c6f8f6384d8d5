"""The LangChain side: each part alone, and the whole turn as a Runnable in all its ways."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough

from assistant import Assistant, Settings
from assistant.errors import QuestionError
from assistant.records import Answer
from assistant.settings import ROOT

QUESTION = "How long is the trial period?"


@pytest.fixture(scope="module")
def assistant(packaged_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    folder = tmp_path_factory.mktemp("chain")
    settings = Settings(
        models_dir=packaged_models, store_dir=folder / "chroma_store", history_dir=folder / "history", max_new_tokens=40
    )
    with Assistant(settings) as made:
        made.ingest([ROOT / "samples" / "handbook.md"])
        yield made


def test_the_parts_are_langchains(assistant: Assistant) -> None:
    assert isinstance(assistant.embedder, Embeddings)
    assert isinstance(assistant.retriever, BaseRetriever)
    assert isinstance(assistant.chat_model, BaseChatModel)
    assert isinstance(assistant.chain, Runnable)


def test_the_retriever_gives_documents_with_their_place(assistant: Assistant) -> None:
    found = assistant.retriever.invoke(QUESTION)
    assert isinstance(found[0], Document)
    assert "trial period is three months" in " ".join(found[0].page_content.split())
    assert found[0].metadata["source"].endswith("handbook.md")
    assert "Notice and trial period" in found[0].metadata["heading"]


def test_the_chat_model_answers_and_streams_the_same(assistant: Assistant) -> None:
    messages = [SystemMessage("Answer briefly."), HumanMessage("What is the capital of France?")]
    whole = assistant.chat_model.invoke(messages)
    assert isinstance(whole, AIMessage)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    pieces = list(assistant.chat_model.stream(messages))
    assert "".join(str(piece.content) for piece in pieces) == whole.content
    assert isinstance(pieces[-1], AIMessageChunk)
    assert pieces[-1].response_metadata["finish_reason"] in ("stop", "length")


def test_the_chat_model_stops_when_asked(assistant: Assistant) -> None:
    cancelled = threading.Event()
    text = ""
    for piece in assistant.chat_model.stream("Write a long story about a kettle.", cancelled=cancelled):
        text += str(piece.content)
        cancelled.set()
        last = piece
    assert last.response_metadata["finish_reason"] == "stopped"
    assert len(text) < 100


def test_a_role_the_template_does_not_know_is_refused(assistant: Assistant) -> None:
    with pytest.raises(ValueError, match="chat"):
        assistant.chat_model.invoke([ChatMessage(content="x", role="narrator")])


def test_the_parts_make_a_chain_of_ones_own(assistant: Assistant) -> None:
    prompt = ChatPromptTemplate.from_template("Text: {context}\n\nQuestion: {question}")
    context = assistant.retriever | (lambda found: found[0].page_content)
    own = {"context": context, "question": RunnablePassthrough()} | prompt | assistant.chat_model | StrOutputParser()
    assert own.invoke(QUESTION)


def test_invoke_gives_answer_context_and_result(assistant: Assistant) -> None:
    output = assistant.chain.invoke({"question": QUESTION, "session_id": "chain"})
    assert output["input"] == QUESTION
    assert output["answer"] == output["result"].text
    assert isinstance(output["result"], Answer)
    assert "three months" in output["quotes"][0].text
    assert isinstance(output["context"][0], Document)
    (turn,) = assistant.history.turns("chain")
    assert turn.id == output["turn_id"]


def test_the_pieces_of_a_stream_add_up_to_the_whole(assistant: Assistant) -> None:
    pieces = list(assistant.chain.stream(QUESTION))
    keys = [next(iter(piece)) for piece in pieces]
    assert keys[:2] == ["input", "context"]
    assert set(keys[2:-1]) == {"answer"}
    assert "".join(piece.get("answer", "") for piece in pieces) == pieces[-1]["result"].text


def test_leaving_a_stream_stops_the_turn(assistant: Assistant) -> None:
    pieces = assistant.chain.stream({"question": "What is said about working from home?", "session_id": "left"})
    for piece in pieces:
        if "answer" in piece:
            break
    pieces.close()  # type: ignore[attr-defined]
    (turn,) = assistant.history.turns("left")
    assert turn.status == "stopped"
    assert assistant.parts.admission.running == 0


def test_a_batch_larger_than_the_queue_is_answered_whole(packaged_models: Path, tmp_path: Path) -> None:
    settings = Settings(models_dir=packaged_models, store_dir=tmp_path / "s", history_dir=tmp_path / "h",
                        model="none", queue_size=1)  # fmt: skip
    with Assistant(settings) as small:
        small.ingest([ROOT / "samples" / "handbook.md"])
        outputs = small.chain.batch([QUESTION] * 5)
        assert len({output["session_id"] for output in outputs}) == 5
        good, bad = small.chain.batch([QUESTION, " "], return_exceptions=True)
        assert "three months" in good["answer"]
        assert isinstance(bad, QuestionError)


def test_the_asynchronous_ways_do_the_same(assistant: Assistant) -> None:
    """The same turn each way, if not the same words.

    A prompt whose head was kept is read in other pieces than one that was not, and the last bit of a product may
    decide between two words.
    """

    async def all_of_them() -> list[dict[str, Any]]:
        one = await assistant.chain.ainvoke(QUESTION)
        pieces = [piece async for piece in assistant.chain.astream(QUESTION)]
        streamed = {key: value for piece in pieces for key, value in piece.items() if key != "answer"}
        streamed["answer"] = "".join(piece.get("answer", "") for piece in pieces)
        return [one, streamed, *await assistant.chain.abatch([QUESTION, QUESTION])]

    with ThreadPoolExecutor(1) as thread:  # the browser's driver keeps an event loop of its own in this one
        outputs = thread.submit(asyncio.run, all_of_them()).result()
    assert len({output["session_id"] for output in outputs}) == 4
    for output in outputs:
        assert output["answer"]
        assert output["answer"] == output["result"].text
        assert "three months" in output["quotes"][0].text


@pytest.mark.parametrize("value", [3, None, {"session_id": "x"}, ["a"]])
def test_what_is_no_question_is_refused(assistant: Assistant, value: object) -> None:
    with pytest.raises(TypeError, match="question"):
        assistant.chain.invoke(value)
