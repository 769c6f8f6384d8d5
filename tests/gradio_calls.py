"""Run by a test: serves one endpoint with Gradio, calls it, and prints what its queue keeps of the calls."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import assistant.ui.server  # noqa: F401 - sets what Gradio reads from the environment
from assistant.ui.channels import UNREAD, forget_finished

import gradio as gr  # isort: skip
import httpx  # isort: skip

app = gr.Server()


@app.api(name="turn", concurrency_limit=None)  # type: ignore[untyped-decorator]
async def turn(call: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Answer with the question."""
    forget_finished(app.get_blocks()._queue)
    yield {"echo": call}


def main() -> None:
    """Call it twenty times to the end, then many times without reading, and once more."""
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, _frontend=False)
    queue = app.get_blocks()._queue
    with httpx.Client(base_url=url) as web:

        def begin() -> str:
            return str(web.post("/gradio_api/call/turn", json={"data": [{"n": 1}]}).json()["event_id"])

        def answered(event: str) -> bool:
            return "echo" in web.get(f"/gradio_api/call/turn/{event}").text

        def kept() -> tuple[int, int]:
            return len(queue.pending_event_ids_session), len(queue.pending_messages_per_session)

        told = [answered(begin()) for _ in range(20)]
        after_reading = kept()
        unread = [begin() for _ in range(UNREAD + 20)]
        while any(event in queue.event_ids_to_events for event in unread):
            time.sleep(0.01)
        told += [answered(begin())]
        after_many_unread = kept()
        told += [answered(unread[-1])]
    sys.stdout.write(
        json.dumps({"answered": told, "after_reading": after_reading, "after_many_unread": after_many_unread})
    )


if __name__ == "__main__":
    main()
