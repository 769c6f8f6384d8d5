"""What memory measures and what it says of limits, against real allocations and real or laid-out control groups."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from assistant import memory
from assistant.errors import SettingsError
from assistant.memory import measure

MIB = 1 << 20
GIB = 1 << 30
PHYSICAL = 16 * GIB
UNLIMITED_V1 = 9223372036854771712  # 2^63 less a page, as the kernel writes it


def _proc(tmp_path: Path, cgroup: str, mounts: list[str]) -> Path:
    own = tmp_path / "proc" / "self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(cgroup)
    (own / "mountinfo").write_text("".join(line + "\n" for line in mounts))
    return tmp_path / "proc"


def _v1(tmp_path: Path, limits: dict[str, int], *, path: str = "/a/b", root: str = "/") -> Path:
    point = tmp_path / "cg"
    for folder, limit in limits.items():
        (point / folder).mkdir(parents=True, exist_ok=True)
        (point / folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    return _proc(
        tmp_path, f"5:cpu,cpuacct:/x\n4:memory:{path}\n0::/\n",
        [f"35 31 0:32 {root} {point} rw,relatime - cgroup cgroup rw,memory"],
    )  # fmt: skip


def _v2(tmp_path: Path, files: dict[str, str], *, path: str = "/a/b", root: str = "/") -> Path:
    point = tmp_path / "cg"
    for name, text in files.items():
        (point / name).parent.mkdir(parents=True, exist_ok=True)
        (point / name).write_text(text + "\n")
    return _proc(tmp_path, f"0::{path}\n", [f"41 31 0:38 {root} {point} rw - cgroup2 cgroup2 rw"])


def test_cgroup_v1_takes_the_smallest_limit_on_the_path(tmp_path: Path) -> None:
    proc = _v1(tmp_path, {"": UNLIMITED_V1, "a": 2 * GIB, "a/b": 3 * GIB})
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == 2 * GIB


@pytest.mark.parametrize("value", [UNLIMITED_V1, 2**63, 2**63 - 1, 2**64 - 1, PHYSICAL])
def test_cgroup_v1_without_a_limit(tmp_path: Path, value: int) -> None:
    proc = _v1(tmp_path, {"": UNLIMITED_V1, "a": value, "a/b": value})
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) is None


def test_cgroup_v1_inside_a_container_sees_its_folder_at_the_mount_point(tmp_path: Path) -> None:
    proc = _v1(tmp_path, {"": GIB}, path="/docker/123", root="/docker/123")
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_cgroup_v1_path_outside_the_mount(tmp_path: Path) -> None:
    proc = _v1(tmp_path, {"": GIB}, path="/elsewhere", root="/docker/123")
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_cgroup_v1_knows_the_limit_of_ancestors_out_of_sight(tmp_path: Path) -> None:
    proc = _v1(tmp_path, {"": UNLIMITED_V1}, path="/docker/123", root="/docker/123")
    (tmp_path / "cg" / "memory.stat").write_text(f"cache 0\nhierarchical_memory_limit {GIB}\n")
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_cgroup_v2_nested_with_max(tmp_path: Path) -> None:
    proc = _v2(tmp_path, {"a/memory.max": str(GIB), "a/b/memory.max": "max"})
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_cgroup_v2_all_max(tmp_path: Path) -> None:
    proc = _v2(tmp_path, {"a/memory.max": "max", "a/b/memory.max": "max", "a/b/memory.high": "max"})
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) is None


@pytest.mark.parametrize("value", ["max", "9223372036854771712", str(2**63), str(2**64 - 1), str(PHYSICAL), ""])
def test_cgroup_v2_without_a_limit(tmp_path: Path, value: str) -> None:
    proc = _v2(tmp_path, {"a/memory.max": value, "a/b/memory.max": value})
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) is None


def test_cgroup_v2_inside_a_container_sees_its_folder_at_the_mount_point(tmp_path: Path) -> None:
    proc = _v2(tmp_path, {"memory.max": str(GIB)}, path="/")
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_cgroup_v2_outside_its_namespace(tmp_path: Path) -> None:
    proc = _v2(tmp_path, {"memory.max": str(GIB)}, path="/../other")
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_cgroup_v2_beside_v1_without_its_memory_controller(tmp_path: Path) -> None:
    proc = _v2(tmp_path, {"a/memory.max": str(GIB)}, path="/a")
    own = proc / "self" / "cgroup"
    own.write_text("4:cpu,cpuacct:/x\n1:name=systemd:/y\n" + own.read_text())
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_cgroup_v2_high_counts(tmp_path: Path) -> None:
    proc = _v2(tmp_path, {"a/b/memory.max": str(GIB), "a/b/memory.high": str(GIB // 2)})
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB // 2


def test_mount_point_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "memory.max").write_text(f"{GIB}\n")
    escaped = str(folder).replace(" ", "\\040")
    proc = _proc(tmp_path, "0::/\n", [f"41 31 0:38 / {escaped} rw - cgroup2 cgroup2 rw"])
    assert memory.cgroup_limit(proc=proc, physical=PHYSICAL) == GIB


def test_no_proc_is_no_limit(tmp_path: Path) -> None:
    assert memory.cgroup_limit(proc=tmp_path / "nothing", physical=PHYSICAL) is None


def test_budget_auto_without_a_limit_is_a_share_of_physical_memory(tmp_path: Path) -> None:
    budget = memory.detect_budget("auto", proc=tmp_path, physical=PHYSICAL)
    assert (budget.bytes, budget.origin, budget.limit) == (int(PHYSICAL * 0.8), "physical", None)
    assert not budget.enforced


def test_budget_auto_in_a_cgroup(tmp_path: Path) -> None:
    budget = memory.detect_budget(" AUTO ", proc=_v2(tmp_path, {"a/b/memory.max": str(GIB)}), physical=PHYSICAL)
    assert (budget.bytes, budget.origin, budget.enforced) == (GIB, "cgroup", True)


def test_setting_below_the_cgroup_is_kept_and_above_it_lowered(tmp_path: Path) -> None:
    proc = _v2(tmp_path, {"a/b/memory.max": str(GIB)})
    below = memory.detect_budget("512MiB", proc=proc, physical=PHYSICAL)
    assert (below.bytes, below.origin, below.limit, below.enforced) == (512 * MIB, "setting", GIB, False)
    above = memory.detect_budget("2GiB", proc=proc, physical=PHYSICAL)
    assert (above.bytes, above.origin, above.enforced) == (GIB, "cgroup", True)
    assert "2.0 GiB" in above.words


def test_setting_above_physical_memory_is_lowered(tmp_path: Path) -> None:
    budget = memory.detect_budget("1TiB", proc=tmp_path, physical=PHYSICAL)
    assert (budget.bytes, budget.origin) == (int(PHYSICAL * 0.8), "physical")


def test_gb_is_not_gib(tmp_path: Path) -> None:
    assert memory.detect_budget("1GB", proc=tmp_path, physical=PHYSICAL).bytes == 10**9
    assert memory.detect_budget("1GiB", proc=tmp_path, physical=PHYSICAL).bytes == 2**30


def test_settled_objects_are_freed_when_the_last_name_for_them_goes() -> None:
    code = """
import gc, weakref
from assistant import memory
class Thing: pass
kept = [Thing() for _ in range(1000)]
memory.settle()
assert gc.get_freeze_count() > 1000
watch = weakref.ref(kept[0])
del kept
assert watch() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("setting", ["-1GiB", "-5", "lots", "", "1 XB", "0", "max"])
def test_senseless_budgets_are_refused_with_the_setting_named(tmp_path: Path, setting: str) -> None:
    with pytest.raises(SettingsError, match="memory_budget"):
        memory.detect_budget(setting, proc=tmp_path, physical=PHYSICAL)


def test_rss_parts_agree() -> None:
    assert 0 < memory.anonymous_rss() < memory.rss()


def test_tree_rss_counts_children() -> None:
    code = "b = b'x' * (60 << 20); print('up', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        assert memory.tree_rss(child.pid) > 60 * MIB
        assert memory.tree_rss(os.getpid()) > memory.rss() + 60 * MIB
        child.stdin.write(b"\n")
    assert memory.tree_rss(child.pid) == 0


def _spike(size: int) -> None:
    with mmap.mmap(-1, size) as block:  # from the system, never from what malloc still holds of an earlier test
        block[::4096] = b"x" * (size // 4096)


def test_peak_of_a_spike_too_short_to_sample() -> None:
    with memory.PeakMeter() as meter:
        _spike(80 * MIB)
    assert meter.exact, "this kernel can't reset VmHWM; the peak is only sampled"
    assert 78 * MIB < meter.peak - meter.before < 90 * MIB
    assert meter.after - meter.before < 10 * MIB


def test_second_meter_does_not_see_the_first_ones_peak() -> None:
    with memory.PeakMeter() as first:
        _spike(80 * MIB)
    with memory.PeakMeter() as second:
        pass
    assert first.peak - second.peak > 70 * MIB


def test_overlapping_meters_each_keep_their_own_peak() -> None:
    with memory.PeakMeter() as outer:
        _spike(80 * MIB)
        with memory.PeakMeter() as inner:
            _spike(30 * MIB)
            assert inner.peak - inner.before > 28 * MIB  # readable while it runs
    assert outer.peak - outer.before > 78 * MIB
    assert inner.peak - inner.before < 40 * MIB


def test_sampled_peak_where_the_mark_cannot_be_reset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    measure._mark_can_be_reset.cache_clear()
    try:
        with memory.PeakMeter() as meter, mmap.mmap(-1, 60 * MIB) as block:  # the heap may have 60 MiB in RAM
            block[:: mmap.PAGESIZE] = b"x" * (60 * MIB // mmap.PAGESIZE)
            seen = meter.peak
    finally:
        measure._mark_can_be_reset.cache_clear()
    assert not meter.exact
    assert seen - meter.before > 58 * MIB
    assert not [thread for thread in threading.enumerate() if thread.name == "rss-sampler"]


def test_release_gives_back_cyclic_garbage_and_free_heap() -> None:
    pieces = [[bytes(1000), None] for _ in range(60_000)]
    for piece in pieces:
        piece[1] = piece  # a cycle each: reference counting alone never frees it
    gc.disable()
    try:
        del piece, pieces
        held = memory.rss()
        given = memory.release()
    finally:
        gc.enable()
    assert given > 40 * MIB
    assert held - memory.rss() > 40 * MIB


def test_release_imports_no_torch() -> None:
    code = "import sys; from assistant import memory; memory.release(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_arena_cap_holds_threads_to_few_heaps() -> None:
    code = """
import sys, threading
from assistant import memory
if sys.argv[1] == "cap": assert memory.cap_arenas(2)
gate = threading.Barrier(21)
def work():
    keep = [bytearray(600) for _ in range(2000)]
    gate.wait(); gate.wait()
for _ in range(20): threading.Thread(target=work).start()
gate.wait()
# glibc's extra arenas are mappings of 64 MiB, aligned to 64 MiB
heaps = {int(line.split("-")[0], 16) for line in open("/proc/self/maps") if not line.split()[5:]}
print(sum(start % (64 << 20) == 0 for start in heaps))
gate.wait()
"""
    env = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    counts = [
        int(subprocess.run([sys.executable, "-c", code, word], env=env, check=True, timeout=60,
                           capture_output=True).stdout) for word in ("free", "cap")
    ]  # fmt: skip
    assert counts[1] <= 2 < counts[0]


def test_log_rss_says_after_what(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="assistant.memory"):
        now = memory.log_rss("loading the embedder")
    assert now > 0
    assert "RSS after loading the embedder" in caplog.text


def test_trace_names_the_line_that_grew() -> None:
    trace = memory.MemoryTrace(top=3)
    trace.start()
    kept = [bytes(1000) for _ in range(1000)]
    top = trace.growth()[0]
    assert Path(top.file).name == "test_memory.py"
    assert top.grown > 900_000
    assert "test_memory.py" in str(top)
    assert len(kept) == 1000
    assert all(Path(row.file).name != "test_memory.py" or row.grown < 100_000 for row in trace.stop())
    assert not tracemalloc.is_tracing()
    assert trace.growth() == ()


@pytest.mark.cgroup
def test_budget_inside_a_real_cgroup(memory_cgroup: Path) -> None:
    code = "from assistant import memory; print(memory.detect_budget('auto').bytes)"
    inside = f'echo $$ > {memory_cgroup}/cgroup.procs && exec {sys.executable} -c "{code}"'
    done = subprocess.run(["/bin/sh", "-c", inside], check=True, capture_output=True, timeout=60)
    assert int(done.stdout) == 300 * MIB
