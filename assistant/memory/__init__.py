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
    set_up_process,
    settle,
    tree_rss,
    trim,
)
from .needs import ModelNeeds, read_needs
from .plan import MemoryPlan, MemoryReport, Part, bytes_a_chunk, choose, report
from .trace import Growth, MemoryTrace

__all__ = [
    "Budget",
    "Growth",
    "MemoryPlan",
    "MemoryReport",
    "MemoryTrace",
    "ModelNeeds",
    "Part",
    "PeakMeter",
    "anonymous_rss",
    "bytes_a_chunk",
    "cap_arenas",
    "cgroup_limit",
    "choose",
    "detect_budget",
    "log_rss",
    "physical_bytes",
    "read_needs",
    "release",
    "report",
    "rss",
    "set_mmap_threshold",
    "set_up_process",
    "settle",
    "tree_rss",
    "trim",
]
