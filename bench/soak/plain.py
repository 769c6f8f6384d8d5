"""The plain stack, as tutorials build it, behind the same routes: the arm that ours is held against.

LangChain's ``HuggingFacePipeline`` and ``HuggingFaceEmbeddings``, ``Chroma``, ``RecursiveCharacterTextSplitter``, and
``RunnableWithMessageHistory`` over ``InMemoryChatMessageHistory``; transformers' defaults. The same models, the same
questions, the same longest answer. Needs ``make bench-setup`` for langchain-huggingface and langchain-chroma.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import threading
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", ANONYMIZED_TELEMETRY="False", TOKENIZERS_PARALLELISM="false")

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from langchain_chroma import Chroma
from langchain_core.chat_history import InMemoryChatMessageHistory  # noqa: TID251 - the peer keeps history in memory
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory  # noqa: TID251 - as above
from langchain_huggingface import ChatHuggingFace, HuggingFaceEmbeddings, HuggingFacePipeline
from langchain_text_splitters import RecursiveCharacterTextSplitter

ROOT = Path(__file__).resolve().parent.parent.parent


class PlainStack:
    """Retrieval and chat, tutorial-style."""

    def __init__(self, store: Path, new_tokens: int) -> None:
        self._embeddings = HuggingFaceEmbeddings(model_name=str(ROOT / "models" / "all-minilm-l6-v2"))
        self._vectors = Chroma("plain", self._embeddings, persist_directory=str(store / "plain"))
        self._splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=150)
        self._histories: dict[str, InMemoryChatMessageHistory] = {}
        llm = HuggingFacePipeline.from_model_id(
            str(ROOT / "models" / "smollm2-135m-instruct"), task="text-generation",
            pipeline_kwargs={"max_new_tokens": new_tokens, "do_sample": False, "return_full_text": False},
        )  # fmt: skip
        prompt = ChatPromptTemplate.from_messages([
            ("system", "Answer from this context:\n{context}"), MessagesPlaceholder("history"), ("human", "{question}"),
        ])  # fmt: skip
        retriever = self._vectors.as_retriever()
        found = (lambda value: value["question"]) | retriever | self._joined
        chain = RunnablePassthrough.assign(context=found) | prompt | ChatHuggingFace(llm=llm)
        self._chain = RunnableWithMessageHistory(
            chain, self._history, input_messages_key="question", history_messages_key="history"
        )

    def add(self, name: str, text: str) -> int:
        """Ingest one text; return its number of chunks."""
        chunks = self._splitter.split_documents([Document(text, metadata={"source": name})])
        if chunks:
            self._vectors.add_documents(chunks)
        return len(chunks)

    def ask(self, question: str, session_id: str) -> str:
        """Answer within a session."""
        answer = self._chain.invoke({"question": question}, {"configurable": {"session_id": session_id}})
        return str(answer.content)

    def sessions(self) -> list[str]:
        """Ids of the sessions, newest first."""
        return list(reversed(self._histories))

    def delete(self, session_id: str) -> None:
        """Forget a session."""
        self._histories.pop(session_id, None)

    def _history(self, session_id: str) -> InMemoryChatMessageHistory:
        return self._histories.setdefault(session_id, InMemoryChatMessageHistory())

    @staticmethod
    def _joined(documents: list[Document]) -> str:
        return "\n\n".join(document.page_content for document in documents)


def application(stack: PlainStack) -> FastAPI:
    """Return the routes that the soak's client uses."""
    app, calls, uploads, lock = FastAPI(), dict[str, Any](), list[Any](), threading.Lock()

    @app.get("/api/health")
    def health() -> Any:
        return {}

    @app.post("/gradio_api/call/turn")
    async def call(request: Request) -> Any:
        event_id = secrets.token_hex(16)
        calls[event_id] = (await request.json())["data"][0]
        return {"event_id": event_id}

    @app.get("/gradio_api/call/turn/{event_id}")
    def turn(event_id: str) -> StreamingResponse:
        asked = calls.pop(event_id)

        def events() -> Any:
            session_id = asked["session_id"] or secrets.token_hex(16)
            yield _event({"type": "started", "session_id": session_id})
            try:
                with lock:
                    answer = stack.ask(asked["question"], session_id)
                yield _event({"type": "done", "turn": {"answer": answer, "status": "done"}})
            except Exception as exc:
                logging.exception("turn failed")
                yield _event({"type": "error", "kind": type(exc).__name__, "message": str(exc)})

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.put("/api/uploads")
    async def upload(request: Request, name: str) -> Any:
        text = (await request.body()).decode("utf-8", errors="replace")
        with lock:
            stack.add(name, text)
        uploads.append({"id": str(len(uploads)), "name": name, "state": "added"})
        return uploads[-1]

    @app.get("/api/uploads")
    def listed() -> Any:
        return {"uploads": uploads}

    @app.get("/api/sessions")
    def sessions() -> Any:
        return {"sessions": [{"id": session_id} for session_id in stack.sessions()]}

    @app.get("/api/sessions/{session_id}")
    def opened(session_id: str) -> Any:
        return {}

    @app.patch("/api/sessions/{session_id}")
    def rename(session_id: str) -> Any:
        return {}

    @app.delete("/api/sessions/{session_id}")
    def delete(session_id: str) -> Any:
        stack.delete(session_id)
        return {}

    return app


def _event(value: object) -> str:
    return f"data: {json.dumps([value])}\n\n"


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="the plain stack behind the soak's routes")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--new-tokens", type=int, default=16)
    args = parser.parse_args()
    uvicorn.run(application(PlainStack(args.store, args.new_tokens)), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
