"""Writes what is made from the code: the README's settings, commands and file tree, and ``.env.example``.

``python docs/generate.py`` writes; ``--check`` only says what differs. ``tests/test_docs.py`` calls :func:`differing`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assistant.cli.parser import build_parser  # noqa: E402 - the repository need not be installed
from assistant.settings import PREFIX, describe  # noqa: E402

_FOLDERS = {
    "prompts": "what the model is told, one file each",
    "samples": "documents to try, of a company that does not exist",
    "chroma_store": "run-time data: the index",
    "history": "run-time data: conversations",
    "bench": "benchmarks, each with its peer beside it",
    "docs": "measurements and screenshots",
    "tests": "one file a module; real models, real Chroma, a real browser",
}


def settings_table() -> str:
    """Return every setting as a Markdown table."""
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    rows += [f"| `{name}` | `{default}` | {doc} |" for name, default, doc in describe()]
    return "\n".join(rows)


def env_example() -> str:
    """Return a ``.env`` file with every setting at its default, commented out."""
    lines = ["# Copy to .env and uncomment what you want to change. The environment goes before this file.", ""]
    for name, default, doc in describe():
        value = "" if default == "(empty)" else default
        lines += [f"# {doc}".replace("`", ""), f"#{PREFIX}{name.upper()}={value}", ""]
    return "\n".join(lines)


def commands_table() -> str:
    """Return every terminal command as a Markdown table, from the parser itself."""
    rows = ["| command | what it does |", "|---|---|"]
    rows += [f"| `{name}` | {summary} |" for name, summary in _commands(build_parser(), "python -m assistant")]
    return "\n".join(rows)


def tree() -> str:
    """Return the file tree: each module with the first sentence of its docstring."""
    lines = ["```", f"app.py{'':<22}{_first_sentence(ROOT / 'app.py')}", "assistant/"]
    package = ROOT / "assistant"
    for path in sorted(package.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            lines.append(f"  {path.name:<26}{_first_sentence(path)}")
        elif (path / "__init__.py").is_file():
            lines.append(f"  {path.name + '/':<26}{_first_sentence(path / '__init__.py')}")
    lines += [f"{name + '/':<28}{what}" for name, what in _FOLDERS.items()]
    return "\n".join([*lines, "```"])


MADE = {"settings": settings_table, "commands": commands_table, "tree": tree}


def generated() -> dict[Path, str]:
    """Return what each made file should hold."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, make in MADE.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = make()
        readme, count = pattern.subn(lambda match, text=text: match[1] + text + chr(10) + match[2], readme)
        if count != 1:
            raise SystemExit(f"README.md needs <!-- {name} --> and <!-- /{name} --> once each")
    return {ROOT / "README.md": readme, ROOT / ".env.example": env_example()}


def differing() -> list[str]:
    """Return the names of made files that don't hold what the code says."""
    return [
        path.name
        for path, text in generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def _commands(parser: argparse.ArgumentParser, prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found.append((f"{prefix} {name}{_arguments(sub)}", sub.description or ""))
                found += _commands(sub, f"{prefix} {name}")
    return found


def _arguments(parser: argparse.ArgumentParser) -> str:
    words = []
    for action in parser._actions:
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            word = str(action.metavar or action.dest).upper()
            words.append(f"[{word}]" if action.nargs == "?" else f"{word}…" if action.nargs == "+" else word)
    return "".join(f" {word}" for word in words)


def _first_sentence(path: Path) -> str:
    if not path.is_file():
        return ""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[.])\s", " ".join(doc.split("\n\n")[0].split()))[0]
    return sentence.replace("``", "").rstrip(".")


def main() -> int:
    """Write the files, or with ``--check`` say which differ."""
    if "--check" in sys.argv[1:]:
        names = differing()
        if names:
            sys.stdout.write(f"out of step with the code: {', '.join(names)}; run `make docs`\n")
        return 1 if names else 0
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
