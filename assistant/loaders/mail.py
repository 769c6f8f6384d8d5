"""Mail (.eml, .mht): its headers, its text, and the attachments that some loader reads."""

from __future__ import annotations

import email
import email.policy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from email.message import EmailMessage, Message
from pathlib import Path

from assistant.errors import DamagedDocumentError, DocumentError, EmptyDocumentError
from assistant.records import Segment

from . import html, registry
from .base import Source, clean, one_line, text_segments
from .decode import decode, read

_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_MAX_DEPTH = 4


def load(source: Source) -> Iterator[Segment]:
    """Load a mail; an attachment that can't be read is passed over.

    Raises:
        EmptyDocumentError: It holds no text.
        DamagedDocumentError: It is not a mail.
    """
    with source.path.open("rb") as stream:
        if stream.read(2) in (b"\xff\xfe", b"\xfe\xff") or b"\0" in stream.read(64):
            text = "".join(read(source))  # saved as UTF-16, which no mail is when it is sent
            message = email.message_from_string(text, policy=email.policy.default)
        else:
            stream.seek(0)
            message = email.message_from_binary_file(stream, policy=email.policy.default)
    if not message.keys() and not message.is_multipart():
        raise DamagedDocumentError(source.name, "it is not a mail, whatever its name says", "rename it to .txt")
    seen = False
    for segment in _message(message, source):
        seen = True
        yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


def _message(message: EmailMessage, source: Source) -> Iterator[Segment]:
    subject = _header(message, "Subject")
    heading = (subject[:200],) if subject else ()
    lines = [f"{name}: {value}" for name in _HEADERS if (value := _header(message, name))]
    if lines:
        yield from text_segments("\n".join(lines), heading=heading)
    for part in _parts(message):
        yield from _part(part, source, heading)


def _parts(message: Message) -> Iterator[Message]:
    """Yield the leaves of a message; of alternatives the plainest that says anything."""
    stack = [message]
    while stack:
        part = stack.pop()
        if part.get_content_type() == "message/rfc822" or not part.is_multipart():
            yield part
            continue
        below = [child for child in part.get_payload() if isinstance(child, Message)]
        if part.get_content_type() == "multipart/alternative":
            plain = [child for child in below if child.get_content_type() == "text/plain" and _bytes(child).strip()]
            rich = [child for child in below if child.get_content_type() == "text/html" or child.is_multipart()]
            below = plain[:1] or rich[-1:] or below[-1:]
        stack.extend(reversed(below))


def _part(part: Message, source: Source, heading: tuple[str, ...]) -> Iterator[Segment]:
    kind = part.get_content_type()
    name = one_line(part.get_filename() or "")
    if kind == "message/rfc822":
        inner = part.get_payload()
        if isinstance(inner, list) and inner and isinstance(inner[0], EmailMessage) and source.depth < _MAX_DEPTH:
            yield from _message(inner[0], replace(source, depth=source.depth + 1))
    elif name and part.get_content_disposition() == "attachment":
        yield from _attachment(part, name, source, heading)
    elif kind == "text/plain":
        yield from text_segments(clean(_text(part)), heading=heading)
    elif kind in ("text/html", "application/xhtml+xml"):
        for segment in html.segments([_text(part)], source):
            yield replace(segment, heading=(*heading, *segment.heading))
    elif name:
        yield from _attachment(part, name, source, heading)


def _attachment(part: Message, name: str, source: Source, heading: tuple[str, ...]) -> Iterator[Segment]:
    """Give an attachment's text below its name."""
    yield from text_segments(f"Attachment: {name}", heading=heading)
    suffix = Path(name).suffix.lower()
    data = _bytes(part)
    if suffix not in registry.SUPPORTED or not data or source.depth >= _MAX_DEPTH:
        return
    with tempfile.TemporaryDirectory(prefix="thimble-") as folder:
        path = Path(folder, f"attachment{suffix}")
        path.write_bytes(data)
        inner = replace(source, path=path, depth=source.depth + 1)
        try:
            for segment in registry.segments(inner):
                yield replace(segment, page=None, line=None, heading=(*heading, name[:200], *segment.heading))
        except DocumentError:
            return


def _text(part: Message) -> str:
    return decode(_bytes(part), declared=part.get_content_charset("") or "")


def _bytes(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _header(message: Message, name: str) -> str:
    try:
        return one_line(str(message.get(name, "")))
    except (ValueError, IndexError, AttributeError, TypeError):  # the library trips over some malformed headers
        return ""
