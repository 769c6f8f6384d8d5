"""What the parts of the browser chat share: the assistant, running turns, uploads, and who may come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from assistant.errors import AccessError, UnknownSessionError

from .auth import Access, Tokens
from .strings import Strings

if TYPE_CHECKING:
    from assistant.core import Assistant

    from .ingests import Ingests
    from .runs import Runs


@dataclass(slots=True)
class Site:
    """One running chat."""

    assistant: Assistant
    access: Access
    tokens: Tokens
    strings: Strings
    runs: Runs
    ingests: Ingests

    @property
    def read_only(self) -> bool:
        """Whether documents can't be added or removed here."""
        return self.access.mode == "public"

    def require_writable(self) -> None:
        """Refuse to touch the documents of a public chat.

        Raises:
            AccessError: The chat is public.
        """
        if self.read_only:
            raise AccessError("This chat is open to everybody, so its documents can't be changed.")

    def require_session(self, session_id: str, user: str) -> None:
        """Check that a session is this user's.

        Raises:
            UnknownSessionError: It is not, or there is none.
        """
        if not session_id:
            raise UnknownSessionError("There is no such chat.")
        self.assistant.history.session(session_id, user)


def current_user(request: Request) -> str:
    """Return who asks, as the guard found out."""
    user: str = request.state.user
    return user


User = Annotated[str, Depends(current_user)]
