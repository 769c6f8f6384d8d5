"""Between messages and tokens: the model's chat template, its tokenizer, and text that grows token by token.

Knows nothing of tensors. Reads ``tokenizer.json`` with the tokenizers library and the template with a sandboxed jinja2:
importing transformers for this costs seconds and 240 MB.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from assistant.errors import InferenceError, ModelBrokenError
from assistant.records import Message

_BROKEN = "\ufffd"
_LONGEST_BROKEN = 8
"""Tokens of undecodable text held back before it is given as it is: no character is longer than 4 bytes."""
_REST_OF_CHARACTER = 3  # tokens at most that may still complete one begun

_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a base model that brings no template."""


class ChatText:
    """Tokenizer and chat template of one model folder.

    Attributes:
        end_ids: Tokens that end an answer.

    Raises:
        ModelBrokenError: Files are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelBrokenError(f"The model folder {folder} lacks tokenizer.json.")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:  # tokenizers raises bare Exception
            raise ModelBrokenError(f"{path} is damaged: {exc}.") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        self._special = {
            name: _token_text(config[name])
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if config.get(name)
        }
        self._template = self._compile(_template_text(folder, config))
        added = self._tokenizer.get_added_tokens_decoder()
        self._marks = {
            token.content: token.content[0] + " " + token.content[1:]
            for token in added.values()
            if token.special and len(token.content) > 1
        }
        self.end_ids = self._ends(config)
        self._length = functools.lru_cache(maxsize=512)(self._count)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of *text*, with no special token added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def count(self, text: str) -> int:
        """Count the tokens of *text*."""
        return self._length(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Write the conversation as the model was taught to read it, up to where its answer begins.

        A special token's text inside a message is split by a space, so that no document can end its message and
        speak as someone else.

        Raises:
            InferenceError: The model's template refuses these messages.
        """
        clean = [{"role": message["role"], "content": self._plain(message["content"])} for message in messages]
        try:
            text: str = self._template.render(messages=clean, add_generation_prompt=True, tools=None, **self._special)
            return text
        except TemplateError as exc:
            raise InferenceError(f"The chat template of {self._folder.name} refuses this conversation: {exc}.") from exc

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the whole prompt."""
        return self.encode(self.render(messages))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of *tokens*, special ones left out."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _count(self, text: str) -> int:
        return len(self.encode(text))

    def _plain(self, content: str) -> str:
        for mark, harmless in self._marks.items():
            if mark in content:
                content = content.replace(mark, harmless)
        return content

    def _compile(self, source: str) -> Any:
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        env.globals["raise_exception"] = _refuse
        env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return env.from_string(source)
        except TemplateError as exc:
            raise ModelBrokenError(f"The chat template in {self._folder} is damaged: {exc}.") from exc

    def _ends(self, config: Mapping[str, Any]) -> frozenset[int]:
        """Collect the end tokens: of the generation config, the model config and the tokenizer."""
        ends: set[int | None] = set()
        for name in ("generation_config.json", "config.json"):
            value = _read_json(self._folder / name).get("eos_token_id")
            ends.update([value] if isinstance(value, int) else value or ())
        if "eos_token" in self._special:
            ends.add(self._tokenizer.token_to_id(self._special["eos_token"]))
        return frozenset(end for end in ends if end is not None)


class TextGrowth:
    """Turns tokens into text as they come: every piece is final, and together they are the text of all tokens.

    A tokenizer's text of a token depends on its neighbours (a leading space, half a character), so the last tokens are
    decoded again with the new one and only what was added is given; text that ends in half a character waits
    (the method of Hugging Face's text-generation-inference, 2023).
    """

    def __init__(self, text: ChatText) -> None:
        self._decode = text.decode
        self._tokens: list[int] = []
        self._context = 0
        self._given = 0
        self._given_text = ""

    def add(self, token: int) -> str:
        """Return the text that *token* completes, which may be none."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._context :])
        if not text.endswith(_BROKEN):
            return self._give(text, len(self._tokens))
        waiting = len(self._tokens) - self._given
        if waiting < _LONGEST_BROKEN:
            return ""
        for back in range(_REST_OF_CHARACTER, waiting):  # what stays broken however many tokens follow
            settled = self._decode(self._tokens[self._context : -back])
            if text.startswith(settled):
                return self._give(settled, len(self._tokens) - back)
        return self._give(text, len(self._tokens))

    def rest(self) -> str:
        """Return what still waits, once no token follows."""
        return self._give(self._decode(self._tokens[self._context :]), len(self._tokens))

    def _give(self, text: str, end: int) -> str:
        piece = text[len(self._given_text) :]
        if piece:
            self._context = self._given
            self._given = end
            self._given_text = self._decode(self._tokens[self._context : end])
        return piece


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _token_text(value: Any) -> str:
    return str(value["content"] if isinstance(value, Mapping) else value)


def _template_text(folder: Path, config: Mapping[str, Any]) -> str:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default") or next(iter(named.values()), None)
    return str(template) if template else _PLAIN_TEMPLATE


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ModelBrokenError(f"{path} is damaged: {exc}.") from exc
    if not isinstance(value, dict):
        raise ModelBrokenError(f"{path} is damaged: it holds no object.")
    return value
