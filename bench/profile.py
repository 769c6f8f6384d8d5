"""A scripted session for profilers: ingest the samples, ask questions, change sessions; ``make profile`` runs it twice.

Once under memray (a flame graph of what held memory at the peak), once under py-spy (a flame graph of time).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

QUESTIONS = ("How long is the notice period?", "And for managers?", "How is the K2 descaled?", "What does it cost?")


def main() -> None:
    """Run the session in temporary stores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=12)
    args = parser.parse_args()
    from assistant import Assistant, Settings

    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = Settings(history_dir=folder / "history", store_dir=folder / "store", max_new_tokens=48)
        with Assistant(settings) as assistant:
            assistant.ingest([root / "samples"])
            for number in range(args.turns):
                question = QUESTIONS[number % len(QUESTIONS)]
                answer = assistant.ask(question, session_id=f"session-{number // len(QUESTIONS)}")
                print(f"{question} {answer.text[:60]}")


if __name__ == "__main__":
    main()
