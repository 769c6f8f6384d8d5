"""All settings, with their defaults, units and reasons.

One frozen object. ``Settings()`` reads nothing; ``Settings.from_environment`` reads ``THIMBLE_*`` variables and a
``.env`` file and is called by entry points only. The README's table of settings is made from this file.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import SettingsError
from .units import parse_bytes

PREFIX = "THIMBLE_"
ROOT = Path(__file__).resolve().parent.parent
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def _setting(default: Any, doc: str, *, minimum: float | None = None, maximum: float | None = None,
             choices: tuple[str, ...] | None = None, size: bool = False) -> Any:  # fmt: skip
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices, "size": size}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set, checked when made.

    Raises:
        SettingsError: A value is of the wrong kind or out of its range; names the setting and what it takes.
    """

    # Models
    model: str = _setting(
        "packaged", "Chat model: `packaged`, a folder, a hub id, an OpenAI-compatible URL, or `none`."
    )
    model_name: str = _setting("", "Name of the model behind an OpenAI-compatible URL.")
    api_key: str = _setting("", "Key for an OpenAI-compatible URL; most local servers need none.")
    embedder: str = _setting("packaged", "Embedding model: `packaged`, a folder or a hub id (sentence-transformers).")
    dtype: str = _setting("auto", "Weights of the chat model; `auto` follows the memory plan and the CPU.",
                          choices=("auto", "bf16", "fp32", "int8"))  # fmt: skip
    device: str = _setting("cpu", "`cpu`, or `cuda` where you have one.", choices=("cpu", "cuda"))
    threads: int = _setting(0, "CPU threads for inference; 0 is one per physical core this process may use.", minimum=0)

    # Places
    models_dir: Path = _setting(ROOT / "models", "Where prepared models are kept.")
    store_dir: Path = _setting(ROOT / "chroma_store", "Where the index is kept.")
    history_dir: Path = _setting(ROOT / "history", "Where conversations are kept.")
    prompts_dir: Path = _setting(ROOT / "prompts", "Where the prompts are.")

    # Memory
    memory_budget: str = _setting("auto", "RAM for the whole process: `1GiB`, `800MB`, bytes; `auto` is the cgroup's "
                                  "limit, else 80 % of physical memory.")  # fmt: skip
    idle_unload_s: float = _setting(
        900.0, "Seconds without a turn after which the models leave RAM; 0 never.", minimum=0
    )
    queue_size: int = _setting(16, "Turns that may wait; one more is answered `busy`.", minimum=1)

    # Tokens
    context_tokens: int = _setting(
        0, "Context the model is run with; 0 is what it was made for, at most 2048.", minimum=0
    )
    max_new_tokens: int = _setting(256, "Longest answer, in tokens; kept free in the context.", minimum=1)
    window_tokens: int = _setting(
        0, "Most tokens of earlier turns in the prompt; 0 is a quarter of the context.", minimum=0
    )
    window_style: str = _setting(
        "auto", "Earlier turns in the prompt: `turns` are whole, `questions` leave answers out; `auto` is `questions` "
        "for a model in this process of less than a billion parameters, which would say its old answers again.",
        choices=("auto", "turns", "questions"),
    )  # fmt: skip
    recall_tokens: int = _setting(0, "Most tokens of recalled old turns; 0 is an eighth of the context.", minimum=0)
    evidence_tokens: int = _setting(
        0, "Most tokens of quotes in the prompt; 0 is three eighths of the context.", minimum=0
    )

    # Retrieval
    top_k: int = _setting(8, "Chunks retrieved a turn.", minimum=1, maximum=100)
    max_quotes: int = _setting(4, "Quotes shown with an answer.", minimum=1, maximum=20)
    model_quotes: int = _setting(
        2,
        "Of these, how many the model words its answer from, best first; a small model gets lost in more.",
        minimum=1,
        maximum=20,
    )
    recall_across_sessions: bool = _setting(False, "Recall turns from the user's other sessions too.")
    answer_threshold: float = _setting(0.35, "Below this chance that the documents answer, the reply says so.",
                                       minimum=0, maximum=1)  # fmt: skip

    # Sampling
    temperature: float = _setting(0.0, "0 picks the likeliest token: answers that stay close to the quotes.",
                                  minimum=0, maximum=2)  # fmt: skip
    top_p: float = _setting(
        1.0, "Nucleus sampling: smallest set of tokens with this probability.", minimum=0, maximum=1
    )
    sample_top_k: int = _setting(0, "Sample among this many likeliest tokens; 0 is all.", minimum=0)
    repetition_penalty: float = _setting(
        1.0, "Above 1, tokens already there become less likely.", minimum=0.5, maximum=2
    )
    prompt_bias: float = _setting(1.5, "Added to the logits of tokens that stand in the prompt: answers keep to the "
                                  "words of the quotes. 0 is off; models of this process only.",
                                  minimum=0, maximum=10)  # fmt: skip
    seed: int = _setting(0, "Seed of sampling; the same seed and prompt give the same answer.", minimum=0)
    speculation: bool = _setting(True, "Propose continuations found in the prompt; greedy output stays the same.")
    prefix_cache: bool = _setting(True, "Keep the KV cache of the prompt's fixed head where memory allows.")

    # Documents
    max_file_bytes: int = _setting(1_000_000_000, "Largest file to ingest.", minimum=1, size=True)
    parser_timeout_s: float = _setting(60.0, "Seconds one file may take to parse without giving text.", minimum=1)
    parser_max_bytes: int = _setting(1 << 30, "RAM one parser may use.", minimum=1 << 26, size=True)
    embedding_cache_bytes: int = _setting(256 << 20, "Disk for embeddings of texts seen before; 0 is off.",
                                          minimum=0, size=True)  # fmt: skip

    # History
    history_max_bytes: int = _setting(256_000_000, "Disk for conversations; the oldest leave first.",
                                      minimum=1_000_000, size=True)  # fmt: skip
    history_archive: bool = _setting(True, "Turns that leave go to a compressed archive, which may take as much disk "
                                     "again, instead of away.")  # fmt: skip

    # Sharing
    users_file: Path = _setting(ROOT / "history" / "users.json", "Who may log in; `users add` edits it.")
    user_upload_bytes: int = _setting(500_000_000, "Disk for the uploads of one logged-in user.",
                                      minimum=1_000_000, size=True)  # fmt: skip
    user_queue_places: int = _setting(2, "Turns of one logged-in user that may run or wait at once.", minimum=1)

    def __post_init__(self) -> None:
        """Bring every value to its type and check its range."""
        for spec, kind in _specs(type(self)):
            object.__setattr__(self, spec.name, _check(spec, kind, getattr(self, spec.name)))
        if self.memory_budget.strip().lower() != "auto":
            try:
                parse_bytes(self.memory_budget)
            except ValueError as exc:
                raise SettingsError(f"memory_budget: {exc}, or auto.") from exc

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, env_file: Path | None = None,
                         **overrides: Any) -> Settings:  # fmt: skip
        """Read settings from ``THIMBLE_*`` variables, over a ``.env`` file, under *overrides* that are not None.

        Raises:
            SettingsError: An unknown ``THIMBLE_`` name (with the nearest known one) or a value that makes no sense.
        """
        values: dict[str, Any] = {}
        path = env_file if env_file is not None else ROOT / ".env"
        if path.is_file():
            values.update(_named(_read_env_file(path), str(path.name)))
        values.update(_named(dict(os.environ if environ is None else environ), "the environment"))
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls.checked(values)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Settings:
        """Make settings from a mapping.

        Raises:
            SettingsError: An unknown name (with the nearest known one) or a value that makes no sense.
        """
        known = [spec.name for spec in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the settings are {', '.join(known)}."
                raise SettingsError(f"There is no setting {name}; {hint}")
        return cls(**values)


def describe() -> list[tuple[str, str, str]]:
    """Return every setting as (name, default, what it does), in the order of the class."""
    rows = []
    for spec in dataclasses.fields(Settings):
        default = spec.default
        if isinstance(default, Path):
            default = default.name + "/"
        rows.append((spec.name, str(default) if default != "" else "(empty)", str(spec.metadata["doc"])))
    return rows


def _specs(cls: type[Settings]) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(spec, hints[spec.name]) for spec in dataclasses.fields(cls)]


def _check(spec: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    meta = spec.metadata
    try:
        if kind is bool:
            value = _as_bool(value)
        elif kind is Path:
            value = Path(value).expanduser()
        elif meta["size"]:
            value = parse_bytes(value)
        elif not isinstance(value, kind):
            value = kind(value)
    except (ValueError, TypeError) as exc:
        raise SettingsError(f"{spec.name}: {value!r} won't do ({exc}). {meta['doc']}") from exc
    if isinstance(kind, types.UnionType):
        return value
    if meta["choices"] and value not in meta["choices"]:
        raise SettingsError(f"{spec.name}: {value!r} is not one of {', '.join(meta['choices'])}.")
    low, high = meta["minimum"], meta["maximum"]
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise SettingsError(f"{spec.name}: {value} is out of range, it takes {span}. {meta['doc']}")
    return value


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError("write on or off")


def _named(values: Mapping[str, str], where: str) -> dict[str, str]:
    known = {spec.name for spec in dataclasses.fields(Settings)}
    found = {}
    for key, value in values.items():
        if not key.startswith(PREFIX):
            continue
        name = key[len(PREFIX) :].lower()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {PREFIX}{close[0].upper()}?" if close else "; .env.example lists them all."
            raise SettingsError(f"{where} sets {key}, and there is no such setting{hint}")
        found[name] = value
    return found


def _read_env_file(path: Path) -> dict[str, str]:
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        key, sign, value = text.partition("=")
        if not sign:
            raise SettingsError(f"{path.name}, line {number}: {text!r} is not NAME=value.")
        values[key.removeprefix("export ").strip()] = value.strip().strip("\"'")
    return values
