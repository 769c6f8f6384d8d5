"""Which model: packaged, a local folder, a hub id, an OpenAI-compatible server, or none.

``prepare`` makes the packaged models' folders, ``resolve`` turns what a user wrote into a place, ``listed`` says what
is there and what it costs. Nothing here loads a model, and nothing here imports torch or transformers.

::

    packaged.py     the two models that come by pip: where from, pinned by which hash, under which licence
    preparing.py    fetch, verify, convert, put in place; all or nothing
    converting.py   GGUF to a safetensors folder, tensor by tensor; fp32 safetensors to bf16
    folders.py      is a model folder whole? asked cheaply, at each start
    resolving.py    name to place, with an error that says what was tried
"""

from __future__ import annotations

from .folders import ModelFolder, check_folder, weight_files
from .packaged import CHAT, EMBEDDER, PACKAGED, PackagedModel
from .preparing import Progress, prepare
from .resolving import ListedModel, ResolvedModel, listed, resolve

__all__ = [
    "CHAT",
    "EMBEDDER",
    "PACKAGED",
    "ListedModel",
    "ModelFolder",
    "PackagedModel",
    "Progress",
    "ResolvedModel",
    "check_folder",
    "listed",
    "prepare",
    "resolve",
    "weight_files",
]
