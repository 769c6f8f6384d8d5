"""The memory plan: what each part will take, chosen so that the sum stays inside the budget.

Figures of parts that are not loaded are estimates: constants measured by ``python -m bench.memory`` (date and machine
in docs/memory.md), and sums over a model's ``config.json``. Knows nothing of torch, Chroma or Gradio: it never loads
what it plans for.

What a budget counts. RSS has two kinds of pages. *Anonymous* ones (heaps, KV cache, activations) can only go when they
are freed. *File* pages (code of libraries, mapped weights) are clean: the kernel may drop them at any time and read
them again. Where the number is only a wish (a setting, a share of physical memory), all of RSS counts. Where the kernel
itself enforces it (a cgroup's limit), it drops clean pages before it kills, so only the part of them that is in use at
a time counts: ``WORKING_SHARE``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from assistant.errors import MemoryBudgetError
from assistant.memory.limits import Budget
from assistant.memory.needs import EMBEDDER, LIBRARIES, ModelNeeds
from assistant.units import format_bytes

MIB = 1 << 20
WORKING_SHARE = 0.25
"""Of file pages, what a process under pressure from its cgroup keeps using; see docs/memory.md."""

_ENTRY_BYTES, _SHORT_ENTRY_BYTES = 660, 540
"""RSS of a chunk in Chroma's index beside its vector: links, its id of 32 characters (its number in an index of short
vectors), and their tables."""

PARSER_BYTES = 28 * MIB
"""RSS of one parser child: 20 MiB for text, 23 to 28 for HTML, Office and PDF files of up to 0.8 MB."""

PARSER_FILE_BYTES = 10 * MIB
"""File pages in it: the interpreter's code and its libraries'."""

PARSER_SPACE_BYTES = 64 * MIB
"""Address space that a parser may take at least. A sheet that needs all of it has an RSS of 52 MiB: what is above
the plan is headroom's, and a batch waits for it as for any parser's."""

INGEST_BYTES = 40 * MIB
"""Growth while documents are embedded: a batch's activations, its texts and vectors, the writers' buffers."""

HEADROOM_BYTES = 24 * MIB
"""For what no line names: fragmentation, threads' stacks, a browser's uploads on their way to disk."""

CONTEXT_LADDER = (2048, 1536, 1024, 768, 512)
"""Contexts tried, longest first; below 512 tokens there is no room for evidence and an answer."""

Origin = Literal["measured", "estimated"]


def bytes_a_chunk(dimension: int, *, short: bool = False) -> int:
    """Return what Chroma's index takes of RSS for a chunk, whose full or *short* vector has *dimension* floats."""
    return (_SHORT_ENTRY_BYTES if short else _ENTRY_BYTES) + 4 * dimension


_FULL = bytes_a_chunk(384)


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the plan.

    Attributes:
        bytes: Of RSS at its peak.
        file: How many of these are clean file pages.
        phase: ``turn`` or ``ingest`` when it is there only meanwhile; the plan counts the larger of the two, because an
            ingest waits between batches while a turn needs the room.
        elsewhere: In another process (the parser): it counts against a cgroup, not against this process's RSS.
    """

    name: str
    bytes: int
    file: int = 0
    origin: Origin = "estimated"
    words: str = ""
    phase: Literal["", "turn", "ingest"] = ""
    elsewhere: bool = False

    @property
    def anonymous(self) -> int:
        """Bytes that no file backs."""
        return self.bytes - self.file


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What will be loaded, and what it takes.

    Attributes:
        model: The chosen model, None for quotes alone.
        context_tokens: It is run with this context; 0 without a model.
        notes: What was given up to fit, in words for people; empty when nothing was.
        prefix_cache_bytes: May be kept of prompts between turns, out of what is left.
        chunks: In the index when the plan was made.
        chunk_bytes: What one takes there.
    """

    budget: Budget
    parts: tuple[Part, ...]
    model: ModelNeeds | None
    context_tokens: int
    notes: tuple[str, ...] = ()
    prefix_cache_bytes: int = 0
    chunks: int = 0
    chunk_bytes: int = _FULL

    @property
    def dtype(self) -> str:
        """Of the chosen model; empty without one."""
        return self.model.dtype if self.model is not None else ""

    @property
    def total(self) -> int:
        """Peak of RSS and child processes together, in bytes: what stays, and the larger of a turn and an ingest."""
        return self._phase("") + max(self._phase("turn"), self._phase("ingest"))

    @property
    def needed(self) -> int:
        """What has to be there at the same time: *total*, less file pages the kernel would drop from a full cgroup."""
        if not self.budget.enforced:
            return self.total
        return self._phase("", share=WORKING_SHARE) + max(
            self._phase("turn", share=WORKING_SHARE), self._phase("ingest", share=WORKING_SHARE)
        )

    @property
    def left(self) -> int:
        """Budget less what is needed; negative when it does not fit."""
        return self.budget.bytes - self.needed

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.left >= 0

    def part(self, name: str) -> int:
        """Return the bytes of the part of that name, 0 when there is none."""
        return sum(part.bytes for part in self.parts if part.name == name)

    def measured(self, name: str, amount: int, file: int = 0) -> MemoryPlan:
        """Return the plan with a part's estimate replaced by what was measured."""
        return replace(self, parts=tuple(
            replace(part, bytes=amount, file=file, origin="measured") if part.name == name else part
            for part in self.parts
        ))  # fmt: skip

    @property
    def resident(self) -> int:
        """RSS between turns, in bytes: everything loaded, nothing under way."""
        return self._phase("") - self.part("headroom")

    def _phase(self, phase: str, *, share: float = 1.0) -> int:
        """Sum the parts of a phase, with *share* of their file pages."""
        return sum(part.anonymous + int(part.file * share) for part in self.parts if part.phase == phase)

    def for_turn(self, prompt_tokens: int, new_tokens: int) -> int:
        """Predict the peak RSS of a turn in bytes."""
        return self.resident + self.turn_growth(prompt_tokens, new_tokens)

    def turn_growth(self, prompt_tokens: int, new_tokens: int) -> int:
        """Predict by how much a turn raises RSS over *resident*, in bytes."""
        search = self.part("search")
        if self.model is None:
            return search
        return max(search, self.model.kv_bytes(prompt_tokens + new_tokens) + self.model.activations(prompt_tokens))

    def for_index(self, more_chunks: int) -> int:
        """Return what is needed with *more_chunks* in the index, in bytes."""
        return self.needed + more_chunks * self.chunk_bytes

    def chunks_left(self) -> int:
        """How many more chunks the budget can hold."""
        return max(0, self.left) // self.chunk_bytes

    def parser_bytes(self, most: int) -> int:
        """What one parser may take: *most*, but no more than the budget leaves, at least what a small file needs."""
        return max(PARSER_SPACE_BYTES, min(most, max(0, self.left) + self.part("parser")))

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "budget": self.budget.bytes, "origin": self.budget.origin, "enforced": self.budget.enforced,
            "model": self.model.name if self.model else None, "dtype": self.dtype,
            "context_tokens": self.context_tokens, "total": self.total, "needed": self.needed, "left": self.left,
            "notes": list(self.notes),
            "parts": [{"name": part.name, "bytes": part.bytes, "file": part.file, "origin": part.origin,
                       "words": part.words} for part in self.parts],
        }  # fmt: skip

    def table(self) -> str:
        """Return the plan as lines of text for a terminal."""
        rows = [("part", "bytes", "of these file pages", "", "")]
        rows += [(part.name, format_bytes(part.bytes), format_bytes(part.file) if part.file else "-", part.origin,
                  part.words) for part in self.parts]  # fmt: skip
        rows.append(("sum", format_bytes(self.total), format_bytes(sum(part.file for part in self.parts)), "",
                     "with the larger of a turn and an ingest"))  # fmt: skip
        if self.budget.enforced:
            rows.append(("needed at once", format_bytes(self.needed), "", "",
                         f"with {WORKING_SHARE:.0%} of the file pages; the kernel drops the rest"))  # fmt: skip
        rows.append(("budget", format_bytes(self.budget.bytes), "", "", self.budget.words))
        rows.append(("left", format_bytes(self.left), "", "", "" if self.fits else "it does not fit"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        w, x, y, z = widths
        lines = [f"{a:<{w}}  {b:>{x}}  {c:>{y}}  {d:<{z}}  {e}".rstrip() for a, b, c, d, e in rows]
        return "\n".join([*lines, *self.notes])


def choose(budget: Budget, models: Sequence[ModelNeeds], *, context_tokens: int = 0, chunks: int = 0,
           browser: bool = True, ingest: bool = True, remote: bool = False, prefix_cache: bool = False,
           loaded: int = 0, chunk_bytes: int = _FULL) -> MemoryPlan:  # fmt: skip
    """Choose what fits: int8 over bf16, then a shorter context, then no chat model; in this order, and said.

    Args:
        budget: To stay inside.
        models: Ways to run the wanted model, the preferred one first; empty for ``model = none``.
        context_tokens: The wanted context; 0 is what the model was made for, at most 2048.
        chunks: In the index now.
        browser: Whether the browser chat runs in this process.
        ingest: Whether documents may be ingested while it runs.
        remote: Whether the chat model is behind a URL.
        prefix_cache: Whether prompts may be kept between turns where there is room.
        loaded: RSS of what is loaded beside the assistant (a script's own data), in bytes.
        chunk_bytes: What a chunk takes, by ``bytes_a_chunk``.

    Raises:
        MemoryBudgetError: Even the least does not fit; the message holds the sum.
    """
    common = _common(chunks=chunks, browser=browser, ingest=ingest, remote=remote, loaded=loaded,
                     chunk_bytes=chunk_bytes)  # fmt: skip
    first: MemoryPlan | None = None
    for model, context in _ladder(models, context_tokens):
        plan = MemoryPlan(budget, (*common, *_model_parts(model, context)), model, context, chunks=chunks,
                          chunk_bytes=chunk_bytes)  # fmt: skip
        first = first or plan
        if plan.fits:
            return _with_prefix_cache(replace(plan, notes=_said(first, plan)), prefix_cache)
    plan = MemoryPlan(budget, common, None, 0, chunks=chunks, chunk_bytes=chunk_bytes)
    if not plan.fits:
        raise MemoryBudgetError(
            f"The memory budget of {format_bytes(budget.bytes)} ({budget.words}) is too small: even without a chat "
            f"model it takes {format_bytes(plan.needed)} ("
            + " + ".join(f"{part.name} {format_bytes(part.bytes)}" for part in plan.parts if part.bytes)
            + f"). Set memory_budget to {_round_up(plan.needed)} or more"
            + (", or remove documents." if chunks > 10_000 else "."),
            needed_bytes=plan.needed, budget_bytes=budget.bytes,
        )  # fmt: skip
    return replace(plan, notes=_said(first, plan)) if first is not None else plan


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What ``python -m assistant memory`` prints: the plan that holds, and what else would fit.

    Attributes:
        plan: None when even the least does not fit; *refusal* says so then.
        others: A plan for each model, dtype and context, whether it fits or not.
    """

    plan: MemoryPlan | None
    others: tuple[MemoryPlan, ...]
    refusal: str = ""

    def table(self) -> str:
        """Return it as text for a terminal."""
        head = self.plan.table() if self.plan is not None else self.refusal
        rows = [("model", "dtype", "context", "needs", "")]
        for plan in self.others:
            name, context = ("none", "") if plan.model is None else (plan.model.name, f"{plan.context_tokens:,}")
            fits = "fits" if plan.fits else f"{format_bytes(-plan.left)} too much"
            rows.append((name, plan.dtype, context, format_bytes(plan.needed), fits))
        w, x, y, z = (max(len(row[column]) for row in rows) for column in range(4))
        lines = [f"{a:<{w}}  {b:<{x}}  {c:>{y}}  {d:>{z}}  {e}".rstrip() for a, b, c, d, e in rows]
        return "\n".join([head, "", "What would fit:", *lines])

    def as_json(self) -> str:
        """Return it as JSON."""
        plan = self.plan.as_dict() if self.plan is not None else None
        others = [{"model": other.model.name if other.model else None, "dtype": other.dtype,
                   "context_tokens": other.context_tokens, "needed": other.needed, "fits": other.fits}
                  for other in self.others]  # fmt: skip
        return json.dumps({"plan": plan, "refusal": self.refusal, "others": others}, indent=2)


def report(budget: Budget, models: Sequence[ModelNeeds], others: Sequence[ModelNeeds], *, context_tokens: int = 0,
           chunks: int = 0, browser: bool = True, ingest: bool = True, chunk_bytes: int = _FULL
           ) -> MemoryReport:  # fmt: skip
    """Plan, and list what else would fit.

    Args:
        budget: To stay inside.
        models: As for :func:`choose`.
        others: Every way to run every model there is.
        context_tokens: As for :func:`choose`.
        chunks: In the index now.
        browser: Whether the browser chat runs in this process.
        ingest: Whether documents may be ingested while it runs.
        chunk_bytes: As for :func:`choose`.
    """
    plan, refusal = None, ""
    try:
        plan = choose(budget, models, context_tokens=context_tokens, chunks=chunks, browser=browser, ingest=ingest,
                      chunk_bytes=chunk_bytes)  # fmt: skip
    except MemoryBudgetError as exc:
        refusal = str(exc)
    common = _common(chunks=chunks, browser=browser, ingest=ingest, remote=False, loaded=0, chunk_bytes=chunk_bytes)
    found = [
        MemoryPlan(budget, (*common, *_model_parts(model, context)), model, context)
        for model in others
        for context in sorted({*CONTEXT_LADDER, min(model.max_context, 8192)}, reverse=True)
        if context <= model.max_context
    ]
    return MemoryReport(plan, (*found, MemoryPlan(budget, common, None, 0)), refusal)


def _ladder(models: Sequence[ModelNeeds], wanted: int) -> Iterator[tuple[ModelNeeds, int]]:
    """Yield ways to run, the most wanted first: each model at the full context, then the smallest with less."""
    if not models:
        return
    full = {id(model): min(wanted or CONTEXT_LADDER[0], model.max_context) for model in models}
    for model in models:
        yield model, full[id(model)]
    least = min(models, key=lambda model: model.mapped + model.anonymous)
    for context in CONTEXT_LADDER:
        if context < full[id(least)]:
            yield least, context


def _with_prefix_cache(plan: MemoryPlan, wanted: bool) -> MemoryPlan:
    """Give half of what is left to kept prompts, at most half a context.

    What the next prompt of a session shares with the last is its head, the system prompt and a quarter of the context
    of earlier turns; evidence is new each time. A whole context kept nothing more of use and let RSS swing by 2 %.
    """
    if not wanted or plan.model is None:
        return plan
    amount = min(plan.left // 2, plan.model.kv_bytes(plan.context_tokens) // 2)
    part = Part("kept prompts", amount, words="keys and values of earlier turns, freed first")
    return replace(plan, parts=(*plan.parts, part), prefix_cache_bytes=amount)


def _common(*, chunks: int, browser: bool, ingest: bool, remote: bool, loaded: int, chunk_bytes: int
            ) -> tuple[Part, ...]:  # fmt: skip
    names = ["base", *(["browser"] if browser else []), *(["remote"] if remote else [])]
    libraries = [LIBRARIES[name] for name in names]
    parts = [
        Part("interpreter and libraries", sum(cost.bytes for cost in libraries), sum(cost.file for cost in libraries),
             words="torch, Chroma, LangChain" + (", Gradio" if browser else "")),
        Part("embedder", EMBEDDER.bytes, EMBEDDER.file, words="all-MiniLM-L6-v2"),
        Part("index", LIBRARIES["store"].bytes + chunks * chunk_bytes, words=f"{chunks:,} chunks"),
        Part("search", LIBRARIES["search"].bytes, words="one question's queries, hits and quotes", phase="turn"),
    ]  # fmt: skip
    if ingest:
        parts.append(Part("ingest", INGEST_BYTES, words="a batch on its way into the index", phase="ingest"))
        parts.append(Part("parser", PARSER_BYTES, PARSER_FILE_BYTES, words="in a process of its own",
                          phase="ingest", elsewhere=True))  # fmt: skip
    if loaded:
        parts.append(Part("caller", loaded, origin="measured", words="what the script itself holds"))
    parts.append(Part("headroom", HEADROOM_BYTES))
    return tuple(parts)


def _model_parts(model: ModelNeeds, context: int) -> tuple[Part, ...]:
    return (
        Part("chat model", model.mapped + model.anonymous, model.mapped, words=f"{model.name}, {model.dtype}"),
        Part("KV cache", model.kv_bytes(context), words=f"{context:,} tokens", phase="turn"),
        Part("activations", model.activations(context), phase="turn"),
    )


def _said(first: MemoryPlan, chosen: MemoryPlan) -> tuple[str, ...]:
    """Say what was given up between the first wish and what fits."""
    if first.model is None or (chosen.model is first.model and chosen.context_tokens == first.context_tokens):
        return ()
    why = (
        f"{first.model.dtype} with {first.context_tokens:,} tokens of context needs {format_bytes(first.needed)}, "
        f"and the budget is {format_bytes(first.budget.bytes)}"
    )
    if chosen.model is None:
        return (f"No chat model: {first.model.name} in {why}; answers are quotes alone.",)
    said = []
    if chosen.dtype != first.dtype:
        said.append(f"{chosen.dtype} weights instead of {first.dtype}")
    if chosen.context_tokens != first.context_tokens:
        said.append(f"a context of {chosen.context_tokens:,} tokens instead of {first.context_tokens:,}")
    return (f"To fit: {' and '.join(said)} ({why}).",)


def _round_up(amount: int) -> str:
    return f"{-(-amount // (16 * MIB)) * 16}MiB"
