"""Writes scripted turns into a history until it is killed, and logs what a user would have seen.

Run as ``python tests/history_writer.py FOLDER LOG SEED``. The log is written after the fact it tells of, straight to
the kernel: it survives a kill of this process.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from assistant.errors import StorageFullError
from assistant.history import History

PIECES = ("Yes", ", since", " May", " 2023;", " die Kündigungsfrist", " beträgt", " 3 Monate", " 😀", ".\n")


def main(folder: str, log: str, seed: str) -> None:
    rng = random.Random(seed)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(event: str, turn_id: int, text: str = "") -> None:
        os.write(handle, (json.dumps([event, turn_id, text, time.monotonic()]) + "\n").encode())

    history = History.open(Path(folder))
    tell("ready", 0)
    number = 0
    while True:
        number += 1
        question = f"{seed} asks {number}: " + "why " * rng.randint(1, 300)
        try:
            turn = history.begin(f"session {rng.randint(1, 3)}", question)
        except StorageFullError:
            tell("full", 0)
            time.sleep(0.05)
            continue
        tell("asked", turn.id, question)
        try:
            for _ in range(rng.choice((0, 3, 30, 200))):
                piece = rng.choice(PIECES)
                history.append(turn.id, piece)
                tell("shown", turn.id, piece)
                time.sleep(rng.choice((0.001, 0.01)))
            if rng.random() < 0.2:
                time.sleep(rng.random())  # a model that stalls
            history.finish(turn.id, details={"quotes": ["a sentence"] * rng.randint(0, 50)})
            tell("done", turn.id)
        except StorageFullError:
            tell("full", turn.id)
            time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
