"""A model folder, read with suspicion: it may come from anywhere, be cut short, or point outside itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from inranker.errors import InputError, ModelError
from inranker.sequence import EncoderSequences, ModelSettings, TokenSequence
from inranker.store import read_json

_T5_TYPES = {"t5", "mt5", "umt5"}


class Sequences(Protocol):
    """What the engine asks of a builder of token sequences; see `EncoderSequences`."""

    max_length: int
    specials: int
    truncated_queries: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts on their own, without special tokens and uncut."""
        ...

    def cut_query(self, ids: list[int]) -> list[int]:
        """The query's tokens, cut (and counted) where they would leave no room for the document."""
        ...

    def build(self, query_ids: list[int], document_ids: list[int]) -> TokenSequence:
        """The sequence of a pair; a document that does not fit is cut."""
        ...


@dataclass(frozen=True)
class ModelFolder:
    """A local folder with a ranker: `config.json`, `tokenizer.json`, and weights for at least one back-end."""

    path: Path
    config: dict[str, Any]
    settings: ModelSettings

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Read a folder's configuration.

        Raises:
            ModelError: it is no model folder, or its configuration is damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise ModelError(f"{path}: no such model folder")
        try:
            config = read_json(path / "config.json")
            settings = ModelSettings.read(path)
        except InputError as error:
            raise ModelError(f"{error}: not a model folder") from None
        if not isinstance(config, dict):
            raise ModelError(f"{path}/config.json: not a model's configuration")
        return cls(path, config, settings or _default_settings(config))

    def file(self, name: str) -> Path:
        """A file of this folder.

        Raises:
            ModelError: it is missing, or a link leads out of the folder. (The Hub's cache keeps each file as a link
                to `../../blobs/<hash>`: that one way out is allowed.)
        """
        path = self.path / name
        if not path.is_file():
            raise ModelError(f"{path}: no such file; export the model, or pull it again")
        real, root = path.resolve(), self.path.resolve()
        blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
        if not real.is_relative_to(root) and (blobs is None or real.parent != blobs):
            raise ModelError(f"{path}: leads out of the model folder, to {real}; refused")
        return path

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of this name."""
        return (self.path / name).is_file()

    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        path = self.file("tokenizer.json")
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the binding raises plain Exception
            raise ModelError(f"{path}: damaged tokenizer: {error}") from None

    def sequences(self) -> Sequences:
        """The builder of token sequences that this model was trained with.

        Raises:
            ModelError: the architecture is unknown.
        """
        if self.settings.architecture == "encoder":
            return EncoderSequences(self.tokenizer(), self.settings.max_length)
        if self.settings.architecture == "t5":
            from inranker.sequence_t5 import t5_sequences

            return t5_sequences(self.tokenizer(), self.settings, self.config.get("model_type", "t5"))
        raise ModelError(f"{self.path}: unknown architecture {self.settings.architecture!r}; known: encoder, t5")


def _default_settings(config: dict[str, Any]) -> ModelSettings:
    """Settings for a folder that this package did not write."""
    if config.get("model_type") in _T5_TYPES:
        return ModelSettings(architecture="t5", mode="legacy", max_length=512)
    positions = config.get("max_position_embeddings") or 512
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # their positions start after the padding id
    return ModelSettings(max_length=min(positions, 512))
