"""What makes the start short, and that it changes nothing for others in the process."""

from __future__ import annotations

import gc
import subprocess
import sys
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


def test_chroma_comes_without_grpc_until_somebody_has_it_export_traces() -> None:
    code = """
import sys
from assistant.starting import load_chroma
chromadb = load_chroma()
assert load_chroma() is chromadb is sys.modules["chromadb"]
assert "grpc" not in sys.modules
from chromadb.telemetry import opentelemetry
opentelemetry.otel_init("service", "http://127.0.0.1:9", {}, opentelemetry.OpenTelemetryGranularity.ALL)
assert "grpc" in sys.modules
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
assert isinstance(OTLPSpanExporter, type)
import os
os._exit(0)  # the exporter would wait at the exit for a collector that is not there
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
