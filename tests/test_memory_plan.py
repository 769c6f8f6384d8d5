"""What the plan chooses, says and refuses. The figures it plans with are held against real runs in bench.memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant import memory
from assistant.admission import MemoryGate, occupied
from assistant.errors import MemoryBudgetError, ModelBrokenError
from assistant.memory import Budget, ModelNeeds
from assistant.memory.plan import CONTEXT_LADDER, WORKING_SHARE

MIB = 1 << 20
INT8 = ModelNeeds("small", "int8", 8192, 150 * MIB, 10 * MIB, 92_160, 8 * MIB, 17_000)
BF16 = ModelNeeds("small", "bf16", 8192, 270 * MIB, 10 * MIB, 92_160, 8 * MIB, 17_000)


def _budget(mib: float, *, enforced: bool = False) -> Budget:
    amount = int(mib * MIB)
    return Budget(amount, "cgroup" if enforced else "setting", amount if enforced else None, "a test")


def _needed(model: ModelNeeds | None, context: int, *, enforced: bool = False) -> int:
    models = [model] if model else []
    plan = memory.choose(_budget(1 << 20, enforced=enforced), models, context_tokens=context)
    return plan.needed


def test_with_room_nothing_is_given_up() -> None:
    plan = memory.choose(_budget(8192), [BF16, INT8])
    assert (plan.dtype, plan.context_tokens, plan.notes, plan.fits) == ("bf16", 2048, (), True)
    assert plan.left == 8192 * MIB - plan.total


def test_int8_over_bf16_comes_first() -> None:
    plan = memory.choose(_budget(_needed(BF16, 2048) / MIB - 1), [BF16, INT8])
    assert (plan.dtype, plan.context_tokens) == ("int8", 2048)
    assert "int8 weights instead of bf16" in plan.notes[0]
    assert "context" not in plan.notes[0].split("(")[0]


def test_then_a_shorter_context() -> None:
    plan = memory.choose(_budget(_needed(INT8, 2048) / MIB - 1), [BF16, INT8])
    assert plan.dtype == "int8"
    assert plan.context_tokens == 1536
    assert "1,536 tokens instead of 2,048" in plan.notes[0]


def test_then_no_model() -> None:
    plan = memory.choose(_budget(_needed(INT8, CONTEXT_LADDER[-1]) / MIB - 1), [BF16, INT8])
    assert plan.model is None
    assert plan.notes[0].startswith("No chat model")
    assert "quotes alone" in plan.notes[0]


def test_then_a_refusal_with_the_sum() -> None:
    least = _needed(None, 0)
    with pytest.raises(MemoryBudgetError, match="interpreter and libraries") as caught:
        memory.choose(_budget(least / MIB - 1), [BF16, INT8])
    assert caught.value.needed_bytes == least
    assert caught.value.budget_bytes < least


@pytest.mark.parametrize("size", [1, 4096, 10 * MIB])
def test_a_budget_below_the_interpreter_is_refused(size: int) -> None:
    with pytest.raises(MemoryBudgetError, match="too small"):
        memory.choose(Budget(size, "setting"), [])


def test_file_pages_count_in_full_unless_the_kernel_enforces_the_limit() -> None:
    assert _needed(INT8, 2048, enforced=True) < _needed(INT8, 2048) - 80 * MIB


def test_a_wanted_context_is_kept_within_what_the_model_was_made_for() -> None:
    assert memory.choose(_budget(8192), [INT8], context_tokens=4096).context_tokens == 4096
    assert memory.choose(_budget(8192), [replace(INT8, max_context=1024)], context_tokens=4096).context_tokens == 1024


@given(budget=st.integers(1, 4096), chunks=st.integers(0, 400_000), wanted=st.sampled_from([0, 300, 512, 2048, 8192]),
       enforced=st.booleans(), browser=st.booleans())  # fmt: skip
def test_a_plan_that_is_given_fits_and_a_larger_budget_never_gives_less(
    budget: int, chunks: int, wanted: int, enforced: bool, browser: bool
) -> None:
    def worth(mib: int) -> tuple[int, int, int]:
        try:
            plan = memory.choose(_budget(mib, enforced=enforced), [BF16, INT8], context_tokens=wanted,
                                 chunks=chunks, browser=browser, prefix_cache=True)  # fmt: skip
        except MemoryBudgetError:
            return (0, 0, 0)
        assert plan.needed <= plan.budget.bytes
        assert plan.left == plan.budget.bytes - plan.needed
        assert plan.for_turn(plan.context_tokens - 64, 64) <= plan.total
        if plan.model is None:
            return (1, 0, 0)
        return (2, plan.context_tokens, plan.dtype == "bf16")

    assert worth(budget) <= worth(budget + 64)


def test_kept_prompts_take_only_what_is_left() -> None:
    wide = memory.choose(_budget(4096), [INT8], prefix_cache=True)
    assert wide.prefix_cache_bytes == INT8.kv_bytes(2048) // 2
    tight = memory.choose(_budget(_needed(INT8, 2048) / MIB + 10), [INT8], prefix_cache=True)
    assert tight.prefix_cache_bytes == 5 * MIB
    assert tight.fits


def test_measured_replaces_estimated() -> None:
    plan = memory.choose(_budget(4096), [INT8]).measured("embedder", 200 * MIB, 50 * MIB)
    assert plan.part("embedder") == 200 * MIB
    assert next(part for part in plan.parts if part.name == "embedder").origin == "measured"


def test_table_and_json_say_the_same() -> None:
    found = memory.report(_budget(900), [INT8], [INT8, BF16], chunks=1000)
    data = json.loads(found.as_json())
    assert found.plan is not None
    assert data["plan"]["total"] == found.plan.total
    for part in data["plan"]["parts"]:
        assert part["name"] in found.table()
    assert "too much" in found.table()
    assert {other["fits"] for other in data["others"]} == {True, False}


def test_report_of_a_budget_too_small_still_says_what_it_would_take() -> None:
    found = memory.report(_budget(50), [INT8], [INT8])
    assert found.plan is None
    assert "too small" in found.table()


def test_needs_of_the_packaged_model_come_from_its_files(packaged_models: Path) -> None:
    folder = packaged_models / "smollm2-135m-instruct"
    int8, bf16, fp32 = memory.read_needs(folder, "smollm2", ("int8", "bf16", "fp32"))
    stored = (folder / "model.safetensors").stat().st_size
    assert abs(bf16.mapped - stored) < 0.01 * stored
    assert int8.mapped < bf16.mapped
    assert fp32.anonymous > 2 * stored * 0.99
    assert bf16.kv_per_token == 2 * 30 * 3 * 64 * 2
    assert fp32.kv_per_token == 2 * bf16.kv_per_token


def test_needs_of_another_architecture_and_of_a_damaged_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 768, "n_layer": 12}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (only,) = memory.read_needs(tmp_path, "gpt2")
    assert (only.mapped, only.kv_per_token) == (1000, 2 * 12 * 768 * 2)
    for text in ("", "[]", '{"hidden_size": "wide", "intermediate_size": 1}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelBrokenError):
            memory.read_needs(tmp_path, "gpt2")


# The gate: around what this test process really occupies


def _gate(spare_mib: float, new_chunks: int = 0) -> tuple[MemoryGate, list[int]]:
    """A gate whose budget is what is occupied now and *spare_mib* more."""
    freed: list[int] = []

    def free() -> int:  # collecting the garbage of a process full of tests takes half a second, and frees what it may
        freed.append(1)
        return 0

    plan = memory.choose(_budget(1 << 20), [INT8])
    plan = replace(plan, budget=Budget(memory.rss() + int(spare_mib * MIB), "setting"))
    return MemoryGate(plan, free, lambda: new_chunks), freed


WANTED = {"fixed_tokens": 200, "reserve_tokens": 256, "window_tokens": 512, "recall_tokens": 256,
          "evidence_tokens": 768}  # fmt: skip


def test_a_turn_that_fits_keeps_everything() -> None:
    gate, freed = _gate(300)
    limits = gate.turn(**WANTED)
    assert (limits.window_tokens, limits.recall_tokens, limits.evidence_tokens) == (512, 256, 768)
    assert limits.actions == ()
    assert freed == []


def test_a_tight_turn_releases_then_shrinks_recall_evidence_window_in_this_order() -> None:
    full = INT8.kv_bytes(1992) + INT8.activations(1736)
    seen = []
    for spare in range(int(full / MIB) + 20, 10, -3):
        gate, freed = _gate(spare)
        try:
            limits = gate.turn(**WANTED)
        except MemoryBudgetError:
            break
        assert not limits.actions or freed
        seen.append((limits.window_tokens, limits.evidence_tokens, limits.recall_tokens))
    else:
        pytest.fail("it was never refused")
    assert seen[0] == (512, 768, 256)
    assert (512, 768, 0) in seen
    assert (512, 384, 0) in seen
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) >= 4


def test_a_search_gives_back_first_and_is_refused_without_room() -> None:
    gate, freed = _gate(40)
    assert gate.search() == ()
    assert freed == []
    gate, freed = _gate(-20)
    with pytest.raises(MemoryBudgetError, match="This question"):
        gate.search()
    assert freed == [1]


def test_a_batch_waits_for_room_and_is_refused_when_none_comes() -> None:
    gate, freed = _gate(80)
    gate.batch(20 * MIB)
    assert freed == []
    with pytest.raises(MemoryBudgetError, match="The next batch"):
        gate.batch(200 * MIB, patience_s=0)
    assert freed == [1]


def test_what_an_ingest_has_grown_by_is_not_asked_for_again() -> None:
    gate, _ = _gate(60)
    gate.batch(0, patience_s=0)  # the plan gives an ingest 40 MiB
    grown = bytearray(30 * MIB)
    grown[::4096] = b"x" * len(grown[::4096])
    gate.batch(0, patience_s=0)
    with pytest.raises(MemoryBudgetError):
        gate.ingest(10**9)  # a later one, far too large
    gate.batch(0, patience_s=0)
    with pytest.raises(MemoryBudgetError):
        _gate(30)[0].batch(0, patience_s=0)


def test_a_few_chunks_need_little_room() -> None:
    gate, _ = _gate(25)
    gate.batch(0, share=0.25, patience_s=0)
    with pytest.raises(MemoryBudgetError, match="The next batch"):
        gate.batch(0, patience_s=0)


def test_a_parser_at_work_counts() -> None:
    gate, _ = _gate(70)
    gate.batch(0, 10 * MIB, patience_s=0)
    with pytest.raises(MemoryBudgetError, match="The next batch"):
        gate.batch(0, 60 * MIB, patience_s=0)


def test_a_parser_gets_what_is_left_and_at_least_what_a_small_file_needs() -> None:
    assert memory.choose(_budget(1 << 20), []).parser_bytes(1024 * MIB) == 1024 * MIB
    assert memory.choose(_budget(1 << 20), []).parser_bytes(32 * MIB) == 64 * MIB
    least = memory.choose(_budget(1 << 20), []).needed / MIB
    assert memory.choose(_budget(least + 100), []).parser_bytes(1024 * MIB) == 128 * MIB
    assert memory.choose(_budget(least), []).parser_bytes(1024 * MIB) == 64 * MIB


def test_an_ingest_that_can_not_fit_is_refused_before_it_starts() -> None:
    gate = MemoryGate(memory.choose(_budget(1024), [INT8]), memory.release)
    room = gate.plan.chunks_left()
    gate.ingest(room)
    with pytest.raises(MemoryBudgetError, match=f"{room + 1:,} passages") as caught:
        gate.ingest(room + 1)
    assert f"About {room:,} passages would fit" in str(caught.value)
    later = MemoryGate(gate.plan, memory.release, lambda: 1000)  # as many were added since the plan was made
    with pytest.raises(MemoryBudgetError, match=f"About {room - 1000:,} passages"):
        later.ingest(room)
    assert caught.value.needed_bytes - caught.value.budget_bytes <= gate.plan.chunk_bytes


@pytest.mark.parametrize("enforced", [False, True])
def test_file_pages_count_in_part_only_where_a_cgroup_enforces_the_budget(enforced: bool) -> None:
    plan = memory.choose(_budget(2048, enforced=enforced), [])
    resident = memory.rss()
    file = resident - memory.anonymous_rss()
    assert file > 4 * MIB
    expected = resident - file * (1 - WORKING_SHARE) if enforced else resident
    assert occupied(plan, resident) == pytest.approx(expected, abs=MIB)
