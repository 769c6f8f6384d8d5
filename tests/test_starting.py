"""What makes the start short, and that it changes nothing for others in the process."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from assistant.cli.turns import _until_answered
from assistant.records import Event, Queued, Token
from assistant.starting import undisturbed


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """Leave the collector as it was."""
    yield
    gc.enable()
    gc.unfreeze()


def test_no_garbage_is_collected_within_and_the_last_block_to_end_switches_it_on() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with undisturbed():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with undisturbed():
        thread.start()
        assert entered.wait(10)
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off_and_an_error_switches_it_on() -> None:
    gc.disable()
    with undisturbed():
        pass
    assert not gc.isenabled()
    gc.enable()
    with pytest.raises(ZeroDivisionError), undisturbed():
        _ = 1 / 0
    assert gc.isenabled()


def test_ask_collects_nothing_until_the_answer_begins() -> None:
    seen: list[bool] = []
    closed: list[bool] = []

    def events() -> Iterator[Event]:
        try:
            for event in (Queued(1), Token("a"), Token("b")):
                seen.append(gc.isenabled())
                yield event
            seen.append(gc.isenabled())
        finally:
            closed.append(True)

    assert list(_until_answered(events())) == [Queued(1), Token("a"), Token("b")]
    assert seen == [False, False, True, True]
    assert closed == [True]
    assert gc.get_freeze_count() > 1000


def test_ask_that_breaks_off_closes_the_turn_and_switches_the_collector_on() -> None:
    closed: list[bool] = []

    def events() -> Iterator[Event]:
        try:
            yield Queued(1)
            raise OSError("gone")
        finally:
            closed.append(True)

    with pytest.raises(OSError, match="gone"):
        list(_until_answered(events()))
    assert gc.isenabled()
    assert closed == [True]
