"""The index on disk: documents, chunks and full-text search in SQLite, vectors in Chroma, kept in step.

Knows nothing about files, models or queries: it receives chunks with their vectors and gives back chunks. Chroma holds
ids, vectors (short ones, where the embedder has directions) and whose they are; everything else, the text too, stands
once, in SQLite.
"""

from .care import IndexReport
from .short import short_dimension
from .store import Index

__all__ = ["Index", "IndexReport", "short_dimension"]
