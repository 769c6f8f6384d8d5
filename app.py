"""The browser chat: ``python app.py``. All of it is in ``assistant/ui``."""

from assistant.ui.launch import main

if __name__ == "__main__":
    raise SystemExit(main())
