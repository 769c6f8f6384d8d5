"""RAM: what the process occupies, what it may, what it will, and giving back what it no longer needs."""

from __future__ import annotations

from .limits import Budget, cgroup_limit, detect_budget, physical_bytes
from .measure import (
    PeakMeter,
    anonymous_rss,
    cap_arenas,
    log_rss,
    release,
    rss,
    set_mmap_threshold,
    settle,
    tree_rss,
)
from .trace import Growth, MemoryTrace

__all__ = [
    "Budget",
    "Growth",
    "MemoryTrace",
    "PeakMeter",
    "anonymous_rss",
    "cap_arenas",
    "cgroup_limit",
    "detect_budget",
    "log_rss",
    "physical_bytes",
    "release",
    "rss",
    "set_mmap_threshold",
    "settle",
    "tree_rss",
]
