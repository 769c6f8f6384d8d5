"""Text that grows token by token, picking tokens, drafts: by property, and against transformers' own processors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from assistant.inference import Sampling
from assistant.inference.chat_text import ChatText, TextGrowth
from assistant.inference.lookup import PromptLookup
from assistant.inference.prefix import common_length
from assistant.inference.sampling import Picker

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def byte_level(packaged_models: Path) -> ChatText:
    return ChatText(packaged_models / "smollm2-135m-instruct")


@pytest.fixture(scope="module")
def sentencepiece_like(tmp_path_factory: pytest.TempPathFactory) -> ChatText:
    """A tokenizer as Llama 2 and Gemma have: spaces as ▁, unknown characters as bytes, a stripped first space."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat and the other cat sat there"] * 5, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:1]  # bytes are in the vocabulary and no special tokens
    (folder / "tokenizer.json").write_text(json.dumps(made))
    return ChatText(folder)


def grown(text: ChatText, tokens: list[int]) -> list[str]:
    growth = TextGrowth(text)
    return [*(growth.add(token) for token in tokens), growth.rest()]


@QUIET
@given(ANY_TEXT)
@example("\U00040000\U00040000\u0a40")  # a whole character after many bytes that are none
def test_pieces_make_the_whole_text(byte_level: ChatText, sentencepiece_like: ChatText, words: str) -> None:
    for text in (byte_level, sentencepiece_like):
        tokens = text.encode(words)
        pieces = grown(text, tokens)
        assert "".join(pieces) == text.decode(tokens)
        if "\ufffd" not in text.decode(tokens):
            assert not any("\ufffd" in piece for piece in pieces)


@QUIET
@given(st.lists(st.integers(20, 40000), max_size=40))
def test_pieces_of_any_tokens_make_their_text(byte_level: ChatText, tokens: list[int]) -> None:
    assert "".join(grown(byte_level, tokens)) == byte_level.decode(tokens)


def test_spaces_and_emoji_survive(sentencepiece_like: ChatText) -> None:
    words = "the cat  🙂 sat 你好 there"
    assert "".join(grown(sentencepiece_like, sentencepiece_like.encode(words))) == words


@QUIET
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 8))
def test_drafts_are_what_followed_before(tokens: list[int], most: int) -> None:
    lookup = PromptLookup(tokens)
    draft = lookup.draft(most)
    assert len(draft) <= most
    if draft:
        run = tokens[-2:] + draft
        starts = range(len(tokens) - len(run) + 1)
        assert any(tokens[at : at + len(run)] == run for at in starts)
    elif len(tokens) > 2:
        assert not any(tokens[at : at + 2] == tokens[-2:] for at in range(len(tokens) - 2))


@QUIET
@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_common_length_is_the_longest_common_head(left: list[int], right: list[int]) -> None:
    length = common_length(left, right)
    assert left[:length] == right[:length]
    assert length in (len(left), len(right)) or left[length] != right[length]


def drawn(sampling: Sampling, logits: torch.Tensor, times: int = 300) -> set[int]:
    picker = Picker(sampling, [0], logits.numel())
    return {picker.pick(logits.clone()) for _ in range(times)}


def test_greedy_picks_the_likeliest() -> None:
    logits = torch.tensor([0.1, 3.0, 2.9, -1.0])
    assert drawn(Sampling(), logits) == {1}
    assert drawn(Sampling(temperature=2.0, top_k=1), logits) == {1}


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert drawn(Sampling(temperature=1.0, top_k=2), logits) == {0, 1}
    assert drawn(Sampling(temperature=1.0, top_p=0.6), logits) == {0, 1}
    assert drawn(Sampling(temperature=1.0, top_p=0.4), logits) == {0}
    assert drawn(Sampling(temperature=1.0), logits) == {0, 1, 2, 3}
    flat = torch.zeros(1000)  # the nucleus is wider than what is looked at first
    assert len(drawn(Sampling(temperature=1.0, top_p=0.9), flat, 2000)) > 500


def test_samples_follow_the_distribution() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])
    picker = Picker(Sampling(temperature=1.0, seed=1), [0], 3)
    counts = torch.bincount(torch.tensor([picker.pick(weights.log()) for _ in range(4000)]), minlength=3)
    assert torch.allclose(counts / 4000, weights, atol=0.04)


def test_the_repetition_penalty_is_transformers_own() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    prompt = [3, 7, 7, 20]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), logits.clone()[None])[0]
    picker = Picker(Sampling(repetition_penalty=1.7), prompt, 50)
    assert torch.equal(picker._penalised(logits.clone()), expected)


def test_the_prompt_bias_lifts_each_token_as_often_as_it_stands_in_the_prompt() -> None:
    logits = torch.tensor([1.0, 0.5, 0.0, 0.9])
    picker = Picker(Sampling(prompt_bias=1.2), [1, 2, 2], 4)
    assert not picker.plain
    assert [picker.pick(logits.clone()) for _ in range(4)] == [1, 2, 2, 0]
    assert Picker(Sampling(), [1, 2, 2], 4).pick(logits.clone()) == 0
    picker = Picker(Sampling(prompt_bias=1.2), [1, 2, 2, 3], 4, [3])
    assert [picker.pick(logits.clone()) for _ in range(2)] == [3, 0]
