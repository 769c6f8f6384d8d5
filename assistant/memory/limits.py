"""How much RAM the process may use: the setting, else its memory cgroup, else a share of physical memory.

Knows nothing of what the process uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from assistant.errors import SettingsError
from assistant.units import format_bytes, parse_bytes

PHYSICAL_SHARE = 0.8
"""Of physical memory, where nothing sets a limit: the rest is for the system and its file cache."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of RAM that the process may occupy.

    Attributes:
        origin: ``setting``, ``cgroup`` or ``physical``.
        limit: The kernel's limit when there is one, also where the setting is lower: at this line it kills.
        words: Where the number comes from, for people.
    """

    bytes: int
    origin: str
    limit: int | None = None
    words: str = ""

    @property
    def enforced(self) -> bool:
        """Whether the kernel itself holds the process to this number, dropping clean file pages before it kills."""
        return self.limit is not None and self.limit <= self.bytes


def detect_budget(setting: str = "auto", *, proc: Path = Path("/proc"), physical: int | None = None) -> Budget:
    """Find the budget.

    Args:
        setting: ``auto``, or a size; a size above the cgroup's limit is lowered to it.
        proc: Where the process file system is.
        physical: Bytes of physical memory; read from the system when None.

    Raises:
        SettingsError: *setting* is neither.
    """
    physical = physical_bytes() if physical is None else physical
    limit = cgroup_limit(proc=proc, physical=physical)
    word = setting.strip().lower()
    if word != "auto":
        try:
            wanted = parse_bytes(setting)
        except ValueError as exc:
            raise SettingsError(f"memory_budget: {exc}, or auto.") from exc
        if wanted == 0:
            raise SettingsError("memory_budget: 0 leaves no room; write a size such as 1GiB, or auto.")
        if limit is not None and limit < wanted:
            return Budget(limit, "cgroup", limit,
                          f"the memory cgroup's limit, below the {format_bytes(wanted)} set")  # fmt: skip
        if limit is None and physical < wanted:
            return Budget(int(physical * PHYSICAL_SHARE), "physical", None,
                          f"80 % of physical memory, which is less than the {format_bytes(wanted)} set")  # fmt: skip
        return Budget(wanted, "setting", limit, "memory_budget")
    if limit is not None:
        return Budget(limit, "cgroup", limit, "the memory cgroup's limit")
    return Budget(int(physical * PHYSICAL_SHARE), "physical", None, "80 % of physical memory")


def physical_bytes() -> int:
    """Return the RAM of this machine in bytes."""
    return int(psutil.virtual_memory().total)


def cgroup_limit(*, proc: Path = Path("/proc"), physical: int | None = None) -> int | None:
    """Return the smallest memory limit on the way from this process's cgroup to the root, or None without one.

    Version 1 writes "no limit" as 2^63 less a page and version 2 as ``max``; anything from physical memory on limits
    nothing. Version 2's ``memory.high``, at which the kernel starts to stall the process, counts as a limit.
    """
    ceiling = physical_bytes() if physical is None else physical
    found = [value for folder in _cgroup_folders(proc) for value in _limits_in(folder)]
    limits = [value for value in found if value < ceiling]
    return min(limits, default=None)


def _limits_in(folder: Path) -> Iterator[int]:
    for name in ("memory.limit_in_bytes", "memory.max", "memory.high"):
        value = _read_number(folder / name)
        if value is not None:
            yield value
    # Seen from inside a container the ancestors are out of sight, but version 1 sums them up here.
    for line in _read_lines(folder / "memory.stat"):
        name, _, number = line.partition(" ")
        if name == "hierarchical_memory_limit" and number.strip().isdigit():
            yield int(number)


def _cgroup_folders(proc: Path) -> Iterator[Path]:
    """Yield this process's folder in each memory hierarchy, and the folders above it."""
    own = _own_paths(proc)
    for mount_root, mount_point, controller in _memory_mounts(proc):
        if controller not in own:
            continue
        path = own[controller]
        inside = os.path.commonpath([path, mount_root]) == mount_root if path.startswith("/") else False
        # A container that keeps the host's names sees its own folder mounted at the mount point.
        relative = Path(path).relative_to(mount_root) if inside else Path()
        folder = mount_point / relative
        yield folder
        for parent in folder.parents:
            if not parent.is_relative_to(mount_point):
                break
            yield parent


def _own_paths(proc: Path) -> dict[str, str]:
    """Return {"memory": path} for version 1 and {"": path} for version 2 (cgroups(7), /proc/PID/cgroup)."""
    paths = {}
    for line in _read_lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in ("memory", ""):
                paths[controller] = path
    return paths


def _memory_mounts(proc: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield (root, mount point, controller) of the memory hierarchies (proc(5), /proc/PID/mountinfo)."""
    for line in _read_lines(proc / "self" / "mountinfo"):
        before, dash, after = line.partition(" - ")
        if not dash:
            continue
        fields, kind = before.split(), after.split()
        root, point = (_unescape(fields[3]), Path(_unescape(fields[4])))
        if kind[0] == "cgroup2":
            yield root, point, ""
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            yield root, point, "memory"


def _unescape(path: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, char)
    return path


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not Linux, no such hierarchy, or hidden by a sandbox
        return []


def _read_number(path: Path) -> int | None:
    lines = _read_lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None
