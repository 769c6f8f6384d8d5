"""Items of a JSON file are cut out and read one by one, and what is wrong with one stays with that one."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.jsonstream import CutOffError, array_items, line_items

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


class Slow(io.BytesIO):
    """Gives few bytes at a time, so that every border between two reads is met."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.step)


@given(
    items=st.lists(values, max_size=6), step=st.integers(1, 7), ascii_only=st.booleans(), indent=st.none() | st.just(1)
)
def test_an_array_comes_back_item_by_item(items: list[Any], step: int, ascii_only: bool, indent: int | None) -> None:
    try:
        data = json.dumps(items, ensure_ascii=ascii_only, indent=indent).encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8
        data = json.dumps(items, indent=indent).encode()
    read = list(array_items(Slow(data, step)))
    assert [item.value for item in read] == items
    assert [item.number for item in read] == list(range(1, len(items) + 1))


@given(items=st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), min_size=1, max_size=4), data=st.data())
def test_a_cut_off_array_gives_what_is_whole(items: list[Any], data: st.DataObject) -> None:
    text = json.dumps(items).encode()
    cut = data.draw(st.integers(1, len(text) - 1))
    read, ended = [], ""
    try:
        for item in array_items(io.BytesIO(text[:cut])):
            read.append(item.value)
    except CutOffError as exc:
        ended = str(exc)
    assert read == items[: len(read)]
    assert ended == str(len(read) + 1)


def test_what_is_wrong_with_one_item_stays_with_it() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    text = (
        b'[{"a": "\\ud83d and a \x07 and \xff"}, {bad}, 1, '
        + deep.encode()
        + b', {"b": "'
        + b"x" * 3000
        + b'"}, "end"]'
    )
    read = list(array_items(io.BytesIO(text)))
    assert [item.error for item in read] == ["", "not JSON", "", "nested too deep", "", ""]
    assert read[0].value == {"a": "\ud83d and a \x07 and \ufffd"}
    short = list(array_items(Slow(b'[{"b": "' + b"x" * 3000 + b'"}, "end"]', 100), longest_bytes=2000))
    assert [(item.value, bool(item.error)) for item in short] == [(None, True), ("end", False)]


def test_one_object_alone_is_one_item() -> None:
    assert [item.value for item in array_items(io.BytesIO(b' {"a": [1, {"b": 2}]}\n'))] == [{"a": [1, {"b": 2}]}]


def test_lines_are_read_one_by_one() -> None:
    text = b'{"a": 1}\n\nnot json\n' + b'{"b": "' + b"x" * 500 + b'"}\n{"c": 2}'
    read = list(line_items(io.BytesIO(text), longest_bytes=100))
    assert [(item.number, item.value) for item in read] == [(1, {"a": 1}), (3, None), (4, None), (5, {"c": 2})]
    with pytest.raises(CutOffError, match="2"):
        list(line_items(io.BytesIO(b'{"a": 1}\n{"b": ')))
