"""What Gradio's queue keeps of calls that are over: a channel and a set of ids each, for good. Here they go.

One call of the endpoint is one session of Gradio's, so a thousand turns would leave a thousand of both behind, and
those whose tab closed in mid-answer the answer's events too.
"""

from __future__ import annotations

from typing import Any

UNREAD = 64
"""Calls that ended and whose end nobody has read, the newest: their tab may still be on its way to it."""


def forget_finished(queue: Any) -> int:
    """Drop the channels of calls that are over; call it on Gradio's event loop.

    Args:
        queue: Of a ``gradio.Blocks``.

    Returns:
        How many were dropped.
    """
    ids, running = queue.pending_event_ids_session, queue.event_ids_to_events
    over = [name for name, waiting in ids.items() if not waiting]
    ended = [name for name, waiting in ids.items() if waiting and not any(event in running for event in waiting)]
    over += ended[:-UNREAD]
    for name in over:
        del ids[name]
        queue.pending_messages_per_session.pop(name, None)
    return len(over)
