"""Office files locked with a password, decrypted in RAM: what they hold reaches no disk.

Knows containers and passwords. What is inside goes back to the registry, which finds its loader.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from assistant.errors import DamagedDocumentError, EncryptedDocumentError
from assistant.records import Segment

from . import registry
from .base import Source

_FOR_EVERYBODY = "VelvetSweatshop"  # what Excel locks write-protected files with, and opens without asking


def load(source: Source) -> Iterator[Segment]:
    """Load a locked file with the first password that opens it.

    Raises:
        EncryptedDocumentError: It needs a password, or another one.
        DamagedDocumentError: It can't be decrypted.
    """
    with unlocked(source) as plain:
        yield from registry.segments(plain)


def is_locked(source: Source) -> bool:
    """Tell whether an Office file of before 2007 needs a password."""
    import msoffcrypto

    try:
        with source.path.open("rb") as stream:
            return bool(msoffcrypto.OfficeFile(stream).is_encrypted())
    except Exception:  # noqa: BLE001 - it throws almost anything at files that it does not know, and then it is no lock
        return False


@contextmanager
def unlocked(source: Source) -> Iterator[Source]:
    """Decrypt a file into RAM and give it a path, under its own suffix, while the block runs."""
    from msoffcrypto import OfficeFile
    from msoffcrypto.exceptions import DecryptionError, InvalidKeyError

    with source.path.open("rb") as stream, os.fdopen(os.memfd_create("thimble"), "wb") as plain:
        try:
            file = OfficeFile(stream)
            if not any(_opens(file, password) for password in (_FOR_EVERYBODY, *source.passwords)):
                raise _refusal(source)
            file.decrypt(plain)
        except (EncryptedDocumentError, MemoryError):
            raise
        except InvalidKeyError as exc:
            raise _refusal(source) from exc
        except DecryptionError as exc:
            raise EncryptedDocumentError(
                source.name, "its kind of encryption is not supported", "save it without encryption"
            ) from exc
        except Exception as exc:
            raise DamagedDocumentError(
                source.name, "it is encrypted and can't be decrypted", "open and save it anew"
            ) from exc
        plain.flush()
        with tempfile.TemporaryDirectory(prefix="thimble-") as folder:
            link = Path(folder, f"unlocked{source.path.suffix}")
            link.symlink_to(f"/proc/{os.getpid()}/fd/{plain.fileno()}")
            yield replace(source, path=link)


def _opens(file: Any, password: str) -> bool:
    """Tell whether *password* is a file's own, and keep its key in *file* if so."""
    from msoffcrypto.exceptions import InvalidKeyError
    from msoffcrypto.format.ooxml import OOXMLFile

    try:
        if isinstance(file, OOXMLFile):
            file.load_key(password=password, verify_password=True)
        else:  # the formats of before 2007 always verify
            file.load_key(password=password)
    except InvalidKeyError:
        return False
    return True


def _refusal(source: Source) -> EncryptedDocumentError:
    if source.passwords:
        return EncryptedDocumentError(source.name, "it is encrypted and no password that was given opens it",
                                      "check the password")  # fmt: skip
    return EncryptedDocumentError(source.name, "it is encrypted", "give its password")
