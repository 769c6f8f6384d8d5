"""Every error that Thimble raises on purpose.

Each carries its facts as attributes and the remedy in its message, so that an entry point (browser, terminal, script)
can show ``str(error)`` as it is. Error text is never an answer and never stored as one.

::

    AssistantError
    ├── SettingsError             a setting is unknown or has a value that makes no sense
    ├── PromptError               a file in prompts/ is missing or lacks a placeholder
    ├── QuestionError             a question is empty
    ├── DocumentError             one document can't be read; costs that document alone
    │   ├── UnsupportedFormatError
    │   ├── EmptyDocumentError
    │   ├── EncryptedDocumentError
    │   ├── DamagedDocumentError
    │   ├── DocumentTooLargeError
    │   └── ParserLimitError      the parser ran out of time or memory, or died
    ├── UnknownDocumentError      no document of that id or name
    ├── IndexStoreError           the index can't be opened, read or written
    ├── HistoryError              the conversation store can't be opened, read or written
    │   ├── UnknownSessionError
    │   ├── SessionNameError      a name of a session or user that can't be stored
    │   ├── SessionExistsError    a conversation of that id is there already
    │   ├── UnknownTurnError
    │   ├── StaleSessionError     the session moved on since the caller last read it
    │   └── ImportFormatError
    ├── StorageFullError          the disk, or a quota, is full
    ├── BudgetError
    │   ├── ContextOverflowError  the question is longer than the model can read
    │   └── MemoryBudgetError     it would not fit the memory budget
    ├── ModelError
    │   ├── ModelNotFoundError
    │   ├── ModelBrokenError      a model folder is truncated or incomplete
    │   ├── ModelPreparationError the packaged models can't be fetched or converted
    │   └── InferenceError        the model failed while it was writing
    ├── BusyError                 the queue of turns is full
    ├── ClosedError               it was closed, or is shutting down
    ├── StoppedError              the caller stopped before its turn came
    ├── AccessError               this user may not do that
    └── ServerError               the browser chat can't be served (port in use, no share link)
"""

from __future__ import annotations

from pathlib import Path


class AssistantError(Exception):
    """Base of all errors raised on purpose; ``str()`` of it is fit for a screen."""


class SettingsError(AssistantError):
    """A setting is unknown or its value makes no sense."""


class PromptError(AssistantError):
    """A prompt file is missing, unreadable or lacks a placeholder."""


class QuestionError(AssistantError):
    """There is no question in what was asked."""


class DocumentError(AssistantError):
    """One document can't be read.

    Attributes:
        path: The file, as the user named it.
        reason: What is wrong with it, in a few words.
        remedy: What would help, in a few words; may be empty.
    """

    def __init__(self, path: str | Path, reason: str, remedy: str = "") -> None:
        self.path = str(path)
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{Path(path).name}: {reason}" + (f"; {remedy}" if remedy else "") + ".")

    def __reduce__(self) -> tuple[type[DocumentError], tuple[str, str, str]]:
        """Pickle by facts: loaders raise these in a child process."""
        return type(self), (self.path, self.reason, self.remedy)


class UnsupportedFormatError(DocumentError):
    """No loader reads this format."""


class EmptyDocumentError(DocumentError):
    """The document holds no text."""


class EncryptedDocumentError(DocumentError):
    """The document needs a password that was not given, or the given one is wrong."""


class DamagedDocumentError(DocumentError):
    """The document is broken or is not what its name says."""


class DocumentTooLargeError(DocumentError):
    """The document is larger than the settings allow."""


class ParserLimitError(DocumentError):
    """The parser of this document ran out of time or memory, or died."""


class UnknownDocumentError(AssistantError):
    """No document of that id or name is in the index."""


class IndexStoreError(AssistantError):
    """The index can't be opened, read or written."""


class HistoryError(AssistantError):
    """The conversation store can't be opened, read or written."""


class UnknownSessionError(HistoryError):
    """No session of that id belongs to this user."""


class SessionNameError(HistoryError):
    """A name of a session or user is empty, too long or holds control characters."""


class SessionExistsError(HistoryError):
    """The user has a session of that id already."""


class UnknownTurnError(HistoryError):
    """No turn of that id is in this session."""


class StaleSessionError(HistoryError):
    """The session moved on since the caller last read it."""


class ImportFormatError(HistoryError):
    """A file of conversations is not in a format that can be imported."""


class StorageFullError(AssistantError):
    """The disk, or a quota, is full; what was stored before is unharmed."""


class BudgetError(AssistantError):
    """Something does not fit its budget."""


class ContextOverflowError(BudgetError):
    """The question is longer than the model can read.

    Attributes:
        over_tokens: By how many tokens.
    """

    def __init__(self, message: str, *, over_tokens: int) -> None:
        self.over_tokens = over_tokens
        super().__init__(message)


class MemoryBudgetError(BudgetError):
    """It would not fit the memory budget.

    Attributes:
        needed_bytes: What it would take, everything counted.
        budget_bytes: What there is.
    """

    def __init__(self, message: str, *, needed_bytes: int, budget_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        super().__init__(message)


class ModelError(AssistantError):
    """Something is wrong with a model."""


class ModelNotFoundError(ModelError):
    """No model answers to that name."""


class ModelBrokenError(ModelError):
    """A model folder is truncated, incomplete or of an unknown kind."""


class ModelPreparationError(ModelError):
    """The packaged models can't be fetched or converted."""


class InferenceError(ModelError):
    """The model failed while it was reading or writing."""


class BusyError(AssistantError):
    """The queue of turns is full; try again in a moment."""


class StoppedError(AssistantError):
    """The caller stopped before its turn came; nothing was done."""


class ClosedError(AssistantError):
    """It was closed, or is shutting down."""


class AccessError(AssistantError):
    """This user may not do that."""


class ServerError(AssistantError):
    """The browser chat can't be served."""
