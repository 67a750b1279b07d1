"""A model folder, read with suspicion: it may come from anywhere, be cut short, or point outside itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from inranker.errors import InputError, ModelError
from inranker.sequence import EncoderSequences, ModelSettings
from inranker.store import read_json

_T5_TYPES = {"t5", "mt5", "umt5"}


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

    def sequences(self) -> EncoderSequences:
        """The builder of token sequences that this model was trained with."""
        return build_sequences(self.tokenizer(), self.settings)


def build_sequences(tokenizer: Tokenizer, settings: ModelSettings) -> EncoderSequences:
    """The builder of token sequences for an architecture and mode.

    Raises:
        ModelError: the architecture is unknown.
    """
    if settings.architecture == "encoder":
        return EncoderSequences(tokenizer, settings.max_length)
    raise ModelError(f"unknown architecture {settings.architecture!r}; known: encoder, t5")


def _default_settings(config: dict[str, Any]) -> ModelSettings:
    """Settings for a folder that this package did not write."""
    if config.get("model_type") in _T5_TYPES:
        return ModelSettings(architecture="t5", mode="legacy", max_length=512)
    positions = config.get("max_position_embeddings") or 512
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # their positions start after the padding id
    return ModelSettings(max_length=min(positions, 512))
