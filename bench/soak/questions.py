"""Questions over whatever text was ingested: each names words that stand in it, and some follow up."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_SHAPES = (
    "What does the documentation say about {0} and {1}?",
    "How is {0} related to {1}?",
    "Where is {0} described together with {1}?",
    "When should I use {0}?",
)
_FOLLOW_UPS = ("And why is that?", "Can you say more about it?", "What else does it mention?", "Does it have limits?")
_WORD = re.compile(r"[A-Za-z_]{6,20}")


def questions(files: Sequence[Path], seed: int = 7) -> Iterator[str]:
    """Yield questions without end, the same ones for the same files and seed."""
    draw = random.Random(seed)
    words: list[str] = []
    for count in range(10**9):
        if len(words) < 2:
            text = draw.choice(files).read_text(encoding="utf-8", errors="replace")
            start = draw.randrange(max(1, len(text) - 4000))
            words = list(dict.fromkeys(_WORD.findall(text[start : start + 4000])))
            draw.shuffle(words)
            words = words[:12]
            continue
        if count % 5 == 4:
            yield draw.choice(_FOLLOW_UPS)
        else:
            yield draw.choice(_SHAPES).format(words.pop(), words[-1])
