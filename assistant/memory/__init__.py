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
from .needs import ModelNeeds, read_needs
from .plan import MemoryPlan, Part, alternatives, alternatives_table, choose
from .trace import Growth, MemoryTrace

__all__ = [
    "Budget",
    "Growth",
    "MemoryPlan",
    "MemoryTrace",
    "ModelNeeds",
    "Part",
    "PeakMeter",
    "alternatives",
    "alternatives_table",
    "anonymous_rss",
    "cap_arenas",
    "cgroup_limit",
    "choose",
    "detect_budget",
    "log_rss",
    "physical_bytes",
    "read_needs",
    "release",
    "rss",
    "set_mmap_threshold",
    "settle",
    "tree_rss",
]
