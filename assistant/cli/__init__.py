"""The terminal commands: a thin layer that parses words, calls the ``Assistant`` and prints.

Knows nothing about models, stores or retrieval; the only place besides the UI that turns an error into a message.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from assistant.errors import AssistantError

from .parser import build_parser, settings_from

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 refused or failed, 2 wrong words, 130 interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        status: int = args.run(settings_from(args), args)
        sys.stdout.flush()
    except AssistantError as exc:
        if args.debug:
            raise
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone. Point stdout elsewhere, or Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as exc:  # the last stop before a traceback would reach a person
        if args.debug:
            raise
        detail = f"{type(exc).__name__}: {exc}".rstrip(": ")
        print(f"{parser.prog}: something unforeseen went wrong ({detail}); --debug shows where.", file=sys.stderr)
        return 1
    return status
