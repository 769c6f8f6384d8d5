"""The short form of the soak: ingest and turns inside a real memory cgroup, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SESSION = """
import json, sys
from pathlib import Path
from assistant import Assistant, AssistantError, Settings
folder = Path(sys.argv[1])
settings = Settings(history_dir=folder / "history", store_dir=folder / "store", model=sys.argv[2], max_new_tokens=8,
                    models_dir=Path(sys.argv[3]), answer_threshold=0.0, threads=1)
try:
    with Assistant(settings) as assistant:
        report = assistant.ingest([Path("samples")])
        answers = [assistant.ask(q, session_id="s") for q in ("How long is the notice period?", "And for managers?")]
        plan = assistant.parts.plan
        out = {"added": len(report.added), "status": [a.status for a in answers], "text": [a.text for a in answers],
               "peaks": [a.memory.peak for a in answers], "budget": plan.budget.bytes, "dtype": plan.dtype,
               "written": [a.tokens.generated if a.tokens else 0 for a in answers],
               "predicted": plan.total, "left": [a.memory.left for a in answers]}
except AssistantError as error:
    out = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(out))
"""


def _inside(cgroup: Path, limit_mib: int, folder: Path, model: str, models: Path) -> dict[str, object]:
    v1 = cgroup / "memory.limit_in_bytes"
    (v1 if v1.exists() else cgroup / "memory.max").write_text(str(limit_mib << 20))
    command = f'echo $$ > {cgroup}/cgroup.procs && exec "$0" -c "$1" "$2" "$3" "$4"'
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, SESSION, str(folder), model, str(models)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    events = cgroup / ("memory.oom_control" if v1.exists() else "memory.events")
    kills = dict(line.split() for line in events.read_text().splitlines())["oom_kill"]
    assert kills == "0", f"the kernel killed {kills} processes"
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.cgroup
def test_packaged_model_in_512_mib(memory_cgroup: Path, tmp_path: Path, packaged_models: Path) -> None:
    found = _inside(memory_cgroup, 512, tmp_path, "packaged", packaged_models)
    assert found["budget"] == 512 << 20
    assert found["dtype"] in ("int4", "int8")
    assert found["status"] == ["done", "done"]
    assert found["written"] != [0, 0], "the model wrote nothing"
    assert isinstance(found["added"], int)
    assert found["added"] > 0


@pytest.mark.cgroup
def test_quotes_alone_in_400_mib(memory_cgroup: Path, tmp_path: Path, packaged_models: Path) -> None:
    found = _inside(memory_cgroup, 400, tmp_path, "none", packaged_models)
    assert found["status"] == ["done", "done"]
    assert found["dtype"] == ""
    assert isinstance(found["text"], list)
    assert "notice" in found["text"][0].lower()


@pytest.mark.cgroup
def test_too_small_a_cgroup_is_refused_in_words(memory_cgroup: Path, tmp_path: Path, packaged_models: Path) -> None:
    found = _inside(memory_cgroup, 120, tmp_path, "packaged", packaged_models)
    assert found["error"] == "MemoryBudgetError"
    assert "too small" in str(found["message"])
