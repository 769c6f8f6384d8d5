"""The app with a memory plan that asks for nothing in reserve: to find out how far down a limit can go."""

from __future__ import annotations

from assistant.memory import plan
from assistant.ui.launch import main

plan.WORKING_SHARE = plan.HEADROOM_BYTES = plan.PARSER_BYTES = plan.INGEST_BYTES = 0

if __name__ == "__main__":
    raise SystemExit(main())
