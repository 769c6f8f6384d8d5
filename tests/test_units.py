"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.units import format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1GiB", 2**30),
        ("1 GiB", 2**30),
        ("1GB", 10**9),
        ("1 gb", 10**9),
        ("1G", 2**30),
        ("1.5 GiB", 3 * 2**29),
        ("512m", 512 * 2**20),
        ("1073741824", 2**30),
        (1073741824, 2**30),
        ("0", 0),
    ],
)
def test_sizes_are_read(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1", "-1GiB", "1 XB", "1..5GB", "1e9", "GiB", -5])
def test_what_is_no_size_is_refused_with_an_example(text: str | int) -> None:
    with pytest.raises(ValueError, match="GiB"):
        parse_bytes(text)


@given(st.integers(min_value=0, max_value=2**60))
def test_whole_bytes_survive(count: int) -> None:
    assert parse_bytes(str(count)) == count


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 bytes"), (2048, "2 KiB"), (612 * 2**20, "612 MiB"), (3 * 2**29, "1.5 GiB")]
)
def test_sizes_are_written(count: int, expected: str) -> None:
    assert format_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.42, "0.4 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_written(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected
