"""A model behind a URL, with a real HTTP server on loopback and a client of langchain's shape."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from assistant.errors import InferenceError
from assistant.inference import ChatModel, Sampling
from assistant.inference.remote import RemoteChatModel, RemoteGeneration

pytest.importorskip("langchain_openai", reason="the extra thimble[remote] is not installed")

PIECES = ["The ", "notice period ", "is four weeks. ", "你好"]


class Server(BaseHTTPRequestHandler):
    requests: list[dict[str, Any]] = []  # noqa: RUF012  one server a test, emptied by its fixture

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body)
        if body["model"] == "broken":
            self.send_error(500, "out of memory")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a reader that stopped hangs up
            self._answer()

    def _answer(self) -> None:
        for piece in PIECES:
            self._say({"choices": [{"index": 0, "delta": {"role": "assistant", "content": piece}}]})
        self._say({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        self._say({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _say(self, event: dict[str, Any]) -> None:
        data = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"} | event
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Server.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_streams_and_reports(url: str) -> None:
    model = RemoteChatModel(url=url, model_name="m")
    assert isinstance(model, ChatModel)
    assert model.estimated
    generation = model.start([{"role": "user", "content": "How long?"}], Sampling(max_new_tokens=9, temperature=0.5))
    assert isinstance(generation, RemoteGeneration)
    assert list(generation) == PIECES
    assert (generation.stats.prompt_tokens, generation.stats.new_tokens) == (12, 9)
    assert generation.stats.finish_reason == "length"
    assert Server.requests[0]["messages"] == [{"role": "user", "content": "How long?"}]
    assert Server.requests[0]["temperature"] == 0.5
    model.close()


def test_it_stops(url: str) -> None:
    stop = threading.Event()
    generation = RemoteChatModel(url=url, model_name="m").start([{"role": "user", "content": "?"}], None, stop)
    assert next(generation) == PIECES[0]
    stop.set()
    assert list(generation) == []
    assert generation.stats.finish_reason == "stopped"


def test_a_failing_server_is_named(url: str) -> None:
    model = RemoteChatModel(url=url, model_name="broken")
    with pytest.raises(InferenceError, match=r"127\.0\.0\.1"):
        list(model.start([{"role": "user", "content": "?"}]))
    nobody = RemoteChatModel(url="http://127.0.0.1:9/v1", model_name="m")
    with pytest.raises(InferenceError, match="running"):
        list(nobody.start([{"role": "user", "content": "?"}]))
