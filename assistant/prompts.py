"""The prompts: files in ``prompts/``, read and checked once, filled in each turn.

Knows which files there are and what each must hold; does not know what goes into them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import PromptError
from .records import Quote

REQUIRED: dict[str, tuple[str, ...]] = {
    "system": (),
    "question": ("quotes", "question"),
    "recalled": ("turns",),
    "earlier": ("questions",),
    "bare": ("question",),
    "no_answer": ("closest",),
    "nothing": (),
}
"""Every prompt file (without ``.md``) and the placeholders it must have."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_LARGEST_BYTES = 64 * 1024  # a prompt longer than this is a mistaken file, not a prompt


@dataclass(frozen=True)
class Prompts:
    """The checked text of every prompt file."""

    system: str
    question: str
    recalled: str
    earlier: str
    bare: str
    no_answer: str
    nothing: str

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """Read and check all prompt files.

        Raises:
            PromptError: A file is missing or unreadable, lacks a placeholder, or has one that nothing fills.
        """
        return cls(**{name: _read(folder / f"{name}.md", needs) for name, needs in REQUIRED.items()})

    def user_message(self, question: str, quotes: Sequence[Quote] = (), recalled: Sequence[Quote] = ()) -> str:
        """Return the last message of the prompt: recalled turns, then quotes, then the question."""
        head = fill(self.recalled, turns="\n".join(map(_recalled_line, recalled))) if recalled else ""
        if not quotes:
            return head + fill(self.bare, question=question)
        return head + fill(self.question, quotes=" ".join(_one_line(quote.text) for quote in quotes), question=question)

    def earlier_questions(self, questions: Sequence[str]) -> str:
        """Return the head of the last message that names what was asked before."""
        return fill(self.earlier, questions=" ".join(map(_one_line, questions)))


def fill(template: str, **values: str) -> str:
    """Fill in ``{name}`` for the given names only; braces in the values, or around other words, stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def _recalled_line(quote: Quote) -> str:
    who = "You" if quote.said_by == "assistant" else "User"
    return f"- {who}: {_one_line(quote.text)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read(path: Path, needs: tuple[str, ...]) -> str:
    place = f"{path.parent.name}/{path.name}"
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise PromptError(f"{place} is larger than {_LARGEST_BYTES // 1024} KiB; a prompt is a few lines.")
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise PromptError(f"{place} can't be read ({exc.strerror}); restore it from the repository.") from exc
    except UnicodeDecodeError as exc:
        raise PromptError(f"{place} is not UTF-8 text; save it as UTF-8.") from exc
    found = set(_PLACEHOLDER.findall(text))
    for name in needs:
        if name not in found:
            raise PromptError(f"{place} lacks the placeholder {{{name}}}; put it where that text should go.")
    unknown = sorted(found - set(needs))
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in needs) or "none"
        raise PromptError(f"{place} has the placeholder {{{unknown[0]}}}, which nothing fills; it may have: {known}.")
    if not text.strip():
        raise PromptError(f"{place} is empty; restore it from the repository.")
    return text.strip("\n") if path.stem not in ("recalled", "earlier") else text
