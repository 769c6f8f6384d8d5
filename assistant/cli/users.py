"""``users``: who may log in to a shared chat."""

from __future__ import annotations

import argparse
import getpass
import sys

from assistant.errors import AccessError
from assistant.settings import Settings
from assistant.users import Users


def users(settings: Settings, args: argparse.Namespace) -> int:
    """List the names of those who may log in."""
    names = Users(settings.users_file).names()
    print("\n".join(names) if names else "There are no users; `python -m assistant users add NAME` makes one.")
    return 0


def add(settings: Settings, args: argparse.Namespace) -> int:
    """Add a user, or give one another password. It is asked for twice, and never shown."""
    if args.password_stdin or not sys.stdin.isatty():
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise AccessError("The two passwords differ; nothing was changed.")
    fresh = Users(settings.users_file).add(args.name, password)
    print(f"added {args.name}" if fresh else f"changed the password of {args.name}")
    return 0


def remove(settings: Settings, args: argparse.Namespace) -> int:
    """Remove a user; their conversations stay until they are deleted."""
    Users(settings.users_file).remove(args.name)
    print(f"removed {args.name}; their conversations stay in the history")
    return 0
