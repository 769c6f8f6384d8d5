"""The torch thread: one thread, fair turns, errors handed over, nothing kept alive."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from assistant.errors import ClosedError
from assistant.worker import TorchWorker, usable_cores


@pytest.fixture
def worker() -> Iterator[TorchWorker]:
    made = TorchWorker(1)
    yield made
    made.close()


def test_all_work_runs_on_one_other_thread_without_gradients(worker: TorchWorker) -> None:
    import torch

    seen = {worker.run(threading.get_ident) for _ in range(5)}
    threads = [threading.Thread(target=lambda: seen.add(worker.run(threading.get_ident))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
    assert threading.get_ident() not in seen
    assert worker.run(torch.is_inference_mode_enabled)
    assert list(worker.stream(lambda: iter([torch.is_inference_mode_enabled() for _ in range(2)]))) == [True, True]
    assert worker.run(torch.get_num_threads) == 1


def test_run_hands_over_arguments_results_and_errors(worker: TorchWorker) -> None:
    assert worker.run(divmod, 7, 2) == (3, 1)
    assert worker.run(int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        worker.run(divmod, 1, 0)
    assert worker.run(divmod, 7, 2) == (3, 1), "an error must not end the worker"


def test_run_and_stream_inside_the_worker_do_not_wait_for_themselves(worker: TorchWorker) -> None:
    assert worker.run(lambda: worker.run(lambda: 5)) == 5
    assert worker.run(lambda: list(worker.stream(lambda: iter("ab")))) == ["a", "b"]


def test_a_stream_gives_every_item_in_order_and_then_its_error(worker: TorchWorker) -> None:
    def numbers() -> Iterator[int]:
        yield from range(50)
        raise RuntimeError("out of numbers")

    stream = worker.stream(numbers)
    assert [next(stream) for _ in range(50)] == list(range(50))
    with pytest.raises(RuntimeError, match="out of numbers"):
        next(stream)


def test_other_work_is_served_between_two_steps_of_a_stream(worker: TorchWorker) -> None:
    order: list[str] = []
    started = threading.Event()

    def steps() -> Iterator[int]:
        for number in range(6):
            order.append(f"step {number}")
            started.set()
            time.sleep(0.02)
            yield number

    reader = threading.Thread(target=lambda: list(worker.stream(steps)))
    reader.start()
    started.wait()
    worker.run(order.append, "job")
    reader.join()
    assert order.index("job") < len(order) - 1
    assert [item for item in order if item != "job"] == [f"step {n}" for n in range(6)]


def test_two_streams_take_turns(worker: TorchWorker) -> None:
    order: list[str] = []
    both = threading.Barrier(2)

    def steps(name: str) -> Iterator[str]:
        for _ in range(5):
            order.append(name)
            yield name

    def read(name: str) -> None:
        both.wait()
        list(worker.stream(lambda: steps(name)))

    blocked = threading.Event()
    blocker = threading.Thread(target=lambda: worker.run(blocked.wait))
    blocker.start()
    readers = [threading.Thread(target=read, args=(name,)) for name in "ab"]
    for reader in readers:
        reader.start()
    time.sleep(0.2)  # both are queued behind the blocker
    blocked.set()
    for thread in [*readers, blocker]:
        thread.join()
    assert "".join(order) in ("ababababab", "bababababa")


def test_closing_a_stream_closes_the_inner_iterator_on_the_worker(worker: TorchWorker) -> None:
    closed_on: list[int] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed_on.append(threading.get_ident())

    stream = worker.stream(endless)
    assert next(stream) == 1
    stream.close()  # type: ignore[attr-defined]
    assert closed_on == [worker.run(threading.get_ident)]


def test_a_slow_reader_holds_back_only_its_own_stream(worker: TorchWorker) -> None:
    made: list[int] = []

    def many() -> Iterator[int]:
        for number in range(10_000):
            made.append(number)
            yield number

    stream = worker.stream(many)
    next(stream)
    assert worker.run(lambda: "served") == "served"
    time.sleep(0.1)
    assert len(made) < 50
    assert sum(1 for _ in stream) == 9_999


def test_close_ends_open_streams_and_refuses_new_work(worker: TorchWorker) -> None:
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    stream = worker.stream(endless)
    next(stream)
    worker.close()
    worker.close()
    assert ended.is_set()
    with pytest.raises(ClosedError):
        for _ in stream:
            pass
    with pytest.raises(ClosedError):
        worker.run(int)


def test_finished_work_is_not_kept_alive(worker: TorchWorker) -> None:
    class Big:
        pass

    big = Big()
    gone = weakref.ref(big)
    worker.run(lambda held: None, big)

    def stream(held: Big) -> Iterator[int]:
        yield id(held)

    list(worker.stream(lambda big=big: stream(big)))  # type: ignore[misc]
    del big
    gc.collect()
    assert gone() is None


def test_threads_default_to_the_cores_this_process_may_use() -> None:
    assert TorchWorker().threads == usable_cores() >= 1
