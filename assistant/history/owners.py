"""Which process writes a turn, and whether it still lives. Knows nothing about what is stored."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_process() -> str:
    """Return a name for this process that no other, before or after it, will have."""
    return f"{_boot()}/{_namespace()}/{os.getpid()}/{_started(os.getpid())}"


def alive(owner: str) -> bool:
    """Return whether the process of that name still runs.

    A process of another container (another pid namespace of the same boot) can't be seen from here and counts as
    alive: taking a turn away from a writer is worse than a turn marked ``running`` for too long.
    """
    try:
        boot, namespace, pid_text, started = owner.split("/")
        pid = int(pid_text)
    except ValueError:
        return False
    if boot != _boot():
        return False
    if namespace != _namespace():
        return True
    return _started(pid) == started


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:  # not Linux
        return str(int(psutil.boot_time()) // 60)


@cache
def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return "0"


def _started(pid: int) -> str:
    """Return when the process started, in a form that only it has; empty when there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # state; starttime in clock ticks since boot, see proc(5)
    except OSError:
        pass
    try:
        return "" if Path("/proc/self").exists() else f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""
