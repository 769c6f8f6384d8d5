"""The queue of turns, driven by real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from assistant.admission import Admission
from assistant.errors import BusyError, StoppedError

TIMEOUT_S = 10


class Caller(threading.Thread):
    """Enters the queue, holds its place until told to go, and records what it saw."""

    def __init__(self, admission: Admission, user: str, order: list[str] | None = None) -> None:
        super().__init__(daemon=True)
        self.admission, self.user, self.order = admission, user, order if order is not None else []
        self.positions: list[int] = []
        self.inside, self.go, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.admission.enter(self.user, self.positions.append, self.cancelled):
                self.order.append(self.user)
                self.inside.set()
                assert self.go.wait(TIMEOUT_S)
        except (BusyError, StoppedError) as exc:
            self.error = exc

    def finish(self) -> None:
        self.go.set()
        self.join(TIMEOUT_S)
        assert not self.is_alive()


def _until(condition: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(TIMEOUT_S * 100):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("it never came to be")


def _queue(admission: Admission, users: str, order: list[str]) -> list[Caller]:
    callers = []
    for count, user in enumerate(users):
        callers.append(Caller(admission, user, order))
        _until(lambda wanted=count + 1: admission.running + admission.waiting == wanted)
    return callers


def test_alone_nothing_is_waited_for() -> None:
    admission = Admission(2)
    positions: list[int] = []
    with admission.enter("ann", positions.append):
        assert admission.running == 1
    assert positions == []
    assert (admission.running, admission.waiting) == (0, 0)


def test_first_come_first_served_and_each_hears_its_place() -> None:
    admission, order = Admission(4), list[str]()
    callers = _queue(admission, "abcd", order)
    _until(lambda: callers[3].positions == [3])
    for caller in callers:
        assert caller.inside.wait(TIMEOUT_S)
        assert admission.running == 1
        caller.finish()
    assert order == ["a", "b", "c", "d"]
    assert callers[0].positions == []
    assert callers[1].positions == [1]
    for caller in callers[1:]:
        assert caller.positions == sorted(set(caller.positions), reverse=True)
        assert caller.positions[-1] >= 1


def test_full_queue_is_busy_at_once() -> None:
    admission = Admission(2)
    callers = _queue(admission, "abc", [])
    with pytest.raises(BusyError, match="2 questions are waiting"), admission.enter("d"):
        pytest.fail("a full queue let one in")
    for caller in callers:
        assert caller.inside.wait(TIMEOUT_S)
        caller.finish()
    with admission.enter("d"):
        assert admission.running == 1


def test_per_user_bound_leaves_room_for_others() -> None:
    admission = Admission(5, per_user=2)
    callers = _queue(admission, "aa", [])
    with pytest.raises(BusyError, match="You have 2"), admission.enter("a"):
        pytest.fail("a third turn of one user got in")
    other = Caller(admission, "b")
    _until(lambda: admission.waiting == 2)
    for caller in [*callers, other]:
        assert caller.inside.wait(TIMEOUT_S)
        caller.finish()
    assert other.error is None
    with admission.enter("a"):
        assert admission.running == 1


def test_cancelling_while_waiting_moves_the_others_up() -> None:
    admission = Admission(4)
    callers = _queue(admission, "abc", [])
    callers[1].cancelled.set()
    callers[1].join(TIMEOUT_S)
    assert isinstance(callers[1].error, StoppedError)
    _until(lambda: callers[2].positions[-1:] == [1])
    callers[0].finish()
    assert callers[2].inside.wait(TIMEOUT_S)
    callers[2].finish()
    assert not callers[1].inside.is_set()


def test_an_error_in_a_turn_frees_the_place() -> None:
    admission = Admission(1)
    with pytest.raises(ZeroDivisionError), admission.enter("a"):
        raise ZeroDivisionError
    with admission.enter("a"):
        assert admission.running == 1


def test_an_error_while_telling_the_place_leaves_the_queue() -> None:
    admission = Admission(1)

    def broken(position: int) -> None:
        raise RuntimeError("the browser is gone")

    caller = _queue(admission, "a", [])[0]
    with pytest.raises(RuntimeError), admission.enter("b", broken):
        pytest.fail("it was let in while another ran")
    assert admission.waiting == 0
    caller.finish()


def test_two_slots_run_two() -> None:
    admission = Admission(4, slots=2)
    callers = _queue(admission, "abc", [])
    assert callers[0].inside.wait(TIMEOUT_S)
    assert callers[1].inside.wait(TIMEOUT_S)
    assert (admission.running, admission.waiting) == (2, 1)
    callers[1].finish()
    assert callers[2].inside.wait(TIMEOUT_S)
    callers[0].finish()
    callers[2].finish()


def test_closing_sends_the_waiting_away_and_lets_the_running_finish() -> None:
    admission = Admission(4)
    callers = _queue(admission, "ab", [])
    admission.close()
    callers[1].join(TIMEOUT_S)
    assert isinstance(callers[1].error, BusyError)
    with pytest.raises(BusyError, match="closing"), admission.enter("c"):
        pytest.fail("a closed queue let one in")
    callers[0].finish()
    assert callers[0].error is None


def test_many_threads_never_run_two_at_once_and_all_are_answered() -> None:
    admission = Admission(8)
    running, most, outcomes = 0, 0, list[str]()
    lock = threading.Lock()

    def turn(user: str) -> None:
        nonlocal running, most
        try:
            with admission.enter(user):
                with lock:
                    running += 1
                    most = max(most, running)
                threading.Event().wait(0.001)
                with lock:
                    running -= 1
            outcomes.append("done")
        except BusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=turn, args=(str(number),)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert most == 1
    assert len(outcomes) == 50
    assert outcomes.count("done") >= 9
    assert (admission.running, admission.waiting) == (0, 0)
