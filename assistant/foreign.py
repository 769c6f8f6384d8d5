"""Conversations as other programs export them, as turns of ours. Knows their shapes; reads and stores nothing.

ChatGPT's ``mapping`` is a tree of messages, ShareGPT's ``conversations`` and the common ``messages`` are lists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .errors import ImportFormatError
from .history import NewTurn

_LATEST = 1e11  # seconds since the epoch; what is later is no time
_ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation read from a foreign file.

    Attributes:
        head: Key of the last turn of the branch that was shown there.
        kind: ``chatgpt``, ``sharegpt`` or ``messages``.
    """

    session_id: str
    title: str
    turns: Sequence[NewTurn]
    head: str | None
    kind: str


def conversation_from(item: object) -> Conversation:
    """Make sense of one item of a file.

    Raises:
        ImportFormatError: It is no conversation that we know.
    """
    if not isinstance(item, Mapping):
        raise ImportFormatError("not an object")
    if isinstance(item.get("mapping"), Mapping):
        return _from_tree(item)
    for name, kind in (("conversations", "sharegpt"), ("conversation", "sharegpt"), ("messages", "messages")):
        if isinstance(item.get(name), Sequence) and not isinstance(item[name], str):
            return _from_list(item, item[name], kind)
    raise ImportFormatError("neither mapping, conversations nor messages is in it")


def _from_list(item: Mapping[str, Any], messages: Sequence[Any], kind: str) -> Conversation:
    turns: list[NewTurn] = []
    question: str | None = None
    answers: list[str] = []

    def end() -> None:
        nonlocal question
        if question is not None or answers:
            key = str(len(turns))
            parent = str(len(turns) - 1) if turns else None
            turns.append(_turn(key, parent, question or "", answers, created))
        question = None
        answers.clear()

    created = _seconds(item.get("create_time") or item.get("created_at"))
    for message in messages:
        if not isinstance(message, Mapping):
            raise ImportFormatError("a message is not an object")
        role = _ROLES.get(str(message.get("from") or message.get("role") or "").lower())
        text = _content(message.get("value") if "value" in message else message.get("content"))
        if role is None or not text.strip():
            continue
        if role == "user":
            if answers or question is None:
                end()
                question = text
            else:
                question += "\n\n" + text
        else:
            answers.append(text)
    end()
    given = item.get("id") or item.get("conversation_id")
    title = str(item.get("title") or "")
    return Conversation(_session_id(kind, given, turns), title, turns, None, kind)


def _from_tree(item: Mapping[str, Any]) -> Conversation:
    """Turn a tree of messages into a tree of turns: each way from a question down to the next one is a turn."""
    nodes: Mapping[str, Any] = item["mapping"]
    roots = [key for key, node in nodes.items() if isinstance(node, Mapping) and node.get("parent") not in nodes]
    created = _seconds(item.get("create_time"))
    turns: list[NewTurn] = []
    turn_of: dict[str, str] = {}
    # (node, turn before, question so far, answers so far, when asked, nodes of this turn)
    todo: list[tuple[str, str | None, str | None, tuple[str, ...], float, tuple[str, ...]]]
    todo = [(root, None, None, (), created, ()) for root in reversed(roots)]
    seen: set[str] = set()
    while todo:
        node_id, before, question, answers, asked_at, path = todo.pop()
        if node_id in seen:  # a tree has no cycles, a broken export may
            continue
        seen.add(node_id)
        node = nodes[node_id]
        role, text, at = _message(node.get("message"))
        if role == "user" and text:
            if question is not None and not answers:
                question, asked_at = question + "\n\n" + text, at or asked_at
            else:
                if answers:  # an answer that nobody asked for
                    before = _close(turns, turn_of, before, question, answers, asked_at, path)
                question, answers, asked_at, path = text, (), at or asked_at, ()
        elif role == "assistant" and text:
            answers = (*answers, text)
        path = (*path, node_id)
        children = [child for child in node.get("children") or () if isinstance(nodes.get(child), Mapping)]
        asking = [child for child in children if _message(nodes[child].get("message"))[0] == "user"]
        others = [child for child in children if child not in asking]
        ends = bool(asking) or not children
        if ends and (answers or (question is not None and not children)):
            closed = _close(turns, turn_of, before, question, answers, asked_at, path)
            todo += [(child, closed, None, (), asked_at, ()) for child in reversed(asking)]
        else:
            todo += [(child, before, question, answers, asked_at, path) for child in reversed(asking)]
        todo += [(child, before, question, answers, asked_at, path) for child in reversed(others)]
    head = turn_of.get(str(item.get("current_node")))
    given = item.get("conversation_id") or item.get("id")
    title = str(item.get("title") or "")
    return Conversation(_session_id("chatgpt", given, turns), title, turns, head, "chatgpt")


def _close(turns: list[NewTurn], turn_of: dict[str, str], before: str | None, question: str | None,
           answers: Sequence[str], asked_at: float, path: Sequence[str]) -> str:  # fmt: skip
    key = str(len(turns))
    turns.append(_turn(key, before, question or "", answers, asked_at))
    for node_id in path:
        turn_of[node_id] = key
    return key


def _turn(key: str, parent: str | None, question: str, answers: Sequence[str], created: float) -> NewTurn:
    answer = "\n\n".join(answers)
    return NewTurn(key, parent, question, answer, "done" if answer else "interrupted", created, created or None)


def _message(message: Any) -> tuple[str, str, float]:
    """Return role, text and time of a node's message; an empty role for what nobody saw."""
    if not isinstance(message, Mapping):
        return "", "", 0.0
    author, metadata = message.get("author"), message.get("metadata")
    role = _ROLES.get(str(author.get("role")).lower(), "") if isinstance(author, Mapping) else ""
    if isinstance(metadata, Mapping) and metadata.get("is_visually_hidden_from_conversation"):
        return "", "", 0.0
    if message.get("recipient") not in (None, "all"):  # the model talking to a tool
        return "", "", 0.0
    text = _content(message.get("content"))
    return (role, text, _seconds(message.get("create_time"))) if text.strip() else ("", "", 0.0)


def _content(content: Any) -> str:
    """Return the text of a message's content, whichever way it is written."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        if content.get("content_type") in ("thoughts", "reasoning_recap", "user_editable_context"):
            return ""
        return _content(content["parts"]) if "parts" in content else str(content.get("text") or "")
    if isinstance(content, Sequence):
        return "\n".join(part for part in map(_part, content) if part)
    return ""


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return ""
    kind = str(part.get("content_type") or part.get("type") or "")
    if isinstance(part.get("text"), str):
        return str(part["text"])
    return f"[{re.sub('_.*', '', kind) or 'attachment'}]" if kind else ""


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, Decimal)) and 0 <= value < _LATEST else 0.0


def _session_id(kind: str, given: Any, turns: Sequence[NewTurn]) -> str:
    """Return an id that is the same when the same conversation is imported again."""
    text = str(given) if given else ""
    if re.fullmatch(r"[\w.-]{1,100}", text):
        return f"{kind}-{text}"
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace"))
    for part in _texts(turns):
        digest.update(part.encode("utf-8", "backslashreplace"))
    return f"{kind}-{digest.hexdigest()[:16]}"


def _texts(turns: Sequence[NewTurn]) -> Iterator[str]:
    for turn in turns:
        yield turn.question
        yield turn.answer
