"""Asks the running app over HTTP, as a browser tab does; knows its routes and nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx


@dataclass
class Reply:
    """What one question came to: ``done``, ``busy`` or ``failed``."""

    outcome: str
    seconds: float
    session_id: str = ""
    text: str = ""
    turn: dict[str, Any] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)


class Client:
    """One browser tab.

    Args:
        url: Of the app.
    """

    def __init__(self, url: str, timeout_s: float = 600) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s)

    def ask(self, question: str, session_id: str = "") -> Reply:
        """Ask through Gradio's queue (POST, then the event stream) and wait for the end."""
        started = time.monotonic()
        reply = Reply("failed", 0.0, session_id)
        try:
            call = {"kind": "ask", "question": question, "session_id": session_id}
            event = self._http.post("/gradio_api/call/turn", json={"data": [call]})
            event.raise_for_status()
            with self._http.stream("GET", f"/gradio_api/call/turn/{event.json()['event_id']}") as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        self._note(reply, json.loads(line[6:]))
        except (httpx.HTTPError, ValueError) as exc:
            reply.text = f"{type(exc).__name__}: {exc}"
            reply.outcome = "failed"
        reply.seconds = time.monotonic() - started
        return reply

    def upload(self, path: Path, name: str) -> str:
        """Send a file; returns the id under which its state is listed."""
        with path.open("rb") as file:
            answer = self._http.put("/api/uploads", params={"name": name}, content=file,
                                    headers={"content-length": str(path.stat().st_size)})  # fmt: skip
        answer.raise_for_status()
        return str(answer.json()["id"])

    def uploads(self) -> list[dict[str, Any]]:
        """List uploads and their states."""
        found: list[dict[str, Any]] = self._http.get("/api/uploads").raise_for_status().json()["uploads"]
        return found

    def wait_for_uploads(self, timeout_s: float) -> list[dict[str, Any]]:
        """Wait until nothing is being read, and return the last listing."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.uploads()
            if not any(row["state"] in ("waiting", "reading") for row in found) or time.monotonic() > deadline:
                return found
            time.sleep(1)

    def sessions(self) -> list[dict[str, Any]]:
        """List the newest conversations."""
        found: list[dict[str, Any]] = self._http.get("/api/sessions").raise_for_status().json()["sessions"]
        return found

    def open_session(self, session_id: str) -> dict[str, Any]:
        """Read a conversation as the page does when it is clicked."""
        found: dict[str, Any] = self._http.get(f"/api/sessions/{session_id}").raise_for_status().json()
        return found

    def rename(self, session_id: str, title: str) -> None:
        """Rename a conversation."""
        self._http.patch(f"/api/sessions/{session_id}", json={"title": title}).raise_for_status()

    def delete(self, session_id: str) -> None:
        """Delete a conversation."""
        self._http.delete(f"/api/sessions/{session_id}").raise_for_status()

    def close(self) -> None:
        """Close the connection, as a tab that is closed."""
        self._http.close()

    @staticmethod
    def _note(reply: Reply, data: Any) -> None:
        for event in data if isinstance(data, list) else [data]:
            if not isinstance(event, dict):
                continue
            match event.get("type"):
                case "started":
                    reply.session_id = event["session_id"]
                case "queued":
                    reply.positions.append(int(event["position"]))
                case "done":
                    reply.turn = event["turn"]
                    reply.text = event["turn"]["answer"]
                    reply.outcome = "done" if event["turn"]["status"] == "done" else "failed"
                case "error":
                    reply.text = str(event.get("message"))
                    reply.outcome = "busy" if event.get("kind") == "BusyError" else "failed"
