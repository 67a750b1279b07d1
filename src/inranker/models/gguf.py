"""GGUF files as Hugging Face folders: their weights are unpacked once and kept in the cache."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from inranker.errors import ModelError, require
from inranker.models.cache import cache_folder, room_for
from inranker.models.quiet import quiet_transformers
from inranker.store import atomic_folder, file_fingerprint


def transformers_folder(path: Path) -> Path:
    """The folder that transformers can load for a resolved model: itself, or a GGUF file's unpacked copy (bf16).

    The copy lives in the cache under the file's SHA-256, so a changed file is unpacked anew.

    Raises:
        ModelError: the file is no GGUF file of a causal language model that transformers knows, or the disk is full.
    """
    if path.suffix != ".gguf":
        return path
    target = cache_folder() / "unpacked" / file_fingerprint(path)[:32]
    if (target / "config.json").is_file():
        return target
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file")
    require("gguf", "distill")
    # Four bits a weight become sixteen, and the scales go.
    with room_for(target, 4 * path.stat().st_size):
        _unpack(path, target)
    return target


def _unpack(path: Path, target: Path) -> None:
    torch = require("torch", "distill")
    transformers = require("transformers", "distill")
    try:
        # Its progress bars for GGUF cannot be switched off.
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
    except Exception as error:  # a damaged file makes its reader stumble in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: transformers cannot read this GGUF file: {reason}") from None
    # The weights are plain numbers now; a leftover note would have them unpacked again.
    for holder in (model.config, model):
        for name in ("quantization_config", "hf_quantizer"):
            if hasattr(holder, name):
                delattr(holder, name)
    model.is_quantized = False
    with atomic_folder(target) as folder, quiet_transformers():
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
