"""README, .env.example and CHANGELOG say what the code does."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from assistant import __version__
from assistant.cli.parser import build_parser
from assistant.settings import PREFIX, ROOT, Settings, describe

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_made_from_the_code_is_up_to_date(generate: ModuleType) -> None:
    assert generate.differing() == [], "run `make docs`"


def test_every_setting_is_in_the_readme_and_the_example() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name, _, _ in describe():
        assert f"| `{name}` |" in README
        assert f"{PREFIX}{name.upper()}=" in example


def test_the_example_file_is_itself_a_valid_env_file() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    environ = dict(line[1:].split("=", 1) for line in text.splitlines() if line.startswith(f"#{PREFIX}"))
    places = {f"{PREFIX}{name}" for name in ("MODELS_DIR", "STORE_DIR", "HISTORY_DIR", "PROMPTS_DIR", "USERS_FILE")}
    kept = {name: value for name, value in environ.items() if name not in places}
    assert Settings.from_environment(kept, env_file=ROOT / "absent") == Settings()


def _commands() -> list[str]:
    lines = [
        line for block in re.findall(r"```(?:sh|console)\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    return [line.removeprefix("$ ").split("#")[0].strip() for line in lines if "-m assistant" in line]


def test_the_readme_shows_terminal_commands() -> None:
    assert len(_commands()) >= 5


@pytest.mark.parametrize("command", _commands())
def test_each_command_of_the_readme_parses(command: str) -> None:
    words = shlex.split(command)
    args = build_parser().parse_args(words[words.index("assistant") + 1 :])
    assert callable(args.run)


def test_the_python_example_runs_as_printed(packaged_models: Path, tmp_path: Path) -> None:
    """In a copy of the repository: the example uses the places that a clone uses."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for name in ("assistant", "prompts", "samples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models").symlink_to(packaged_models)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "[1] Afterwards the notice period is six weeks to the end of a month. (handbook.md" in printed
    assert "tokens;" in done.stdout


def test_each_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"^(?:\$ )?make ([a-z-]+)", README, re.M))
    assert {"chat", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_changelog_has_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_help_is_fast_enough_to_import_nothing_heavy() -> None:
    code = "import sys, assistant, assistant.cli.parser as p; p.build_parser().format_help(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "assistant.settings" in loaded
    heavy = {"torch", "gradio", "chromadb", "transformers", "langchain_core", "numpy", "sqlite3", "psutil"}
    assert not heavy & loaded
