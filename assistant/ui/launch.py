"""The command line of ``python app.py``; light, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from assistant.errors import AssistantError
from assistant.settings import Settings
from assistant.starting import undisturbed


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    made = argparse.ArgumentParser(prog="app.py", description="Chat with your documents in the browser.")
    made.add_argument("--port", type=int, default=7860, help="port to serve on (default: 7860)")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    made.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    made.add_argument("--auth", default="", metavar="NAME:PASSWORD", help="one user to log in as, for this run")
    made.add_argument("--public", action="store_true", help="let anybody in who has the link; documents are read-only")
    made.add_argument("--model", help="chat model, see README")
    made.add_argument("--memory-budget", metavar="SIZE", help="RAM for the whole process, such as 1GiB")
    made.add_argument("--debug", action="store_true", help="show tracebacks and the full log")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the chat; returns the exit status."""
    args = parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if args.debug else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        _serve(args)
    except AssistantError as error:
        if args.debug:
            raise
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(args: Any) -> None:
    settings = Settings.from_environment(model=args.model, memory_budget=args.memory_budget)
    # Here, not above: both take seconds to import, and --help and a typo need neither.
    with undisturbed():
        from assistant import Assistant

        from .server import access_for, check_port, serve

    access, made = access_for(settings, host=args.host, share=args.share, public=args.public, auth=args.auth)
    check_port(args.host, args.port)
    _say("Starting …")
    with Assistant(settings) as assistant:
        for note in assistant.plan_memory():
            _say(note)
        serve(assistant, access, made, host=args.host, port=args.port, share=args.share, say=_say)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
