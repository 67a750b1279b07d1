"""The transformers back-end: any causal language model of the Hugging Face Hub, a folder, or a GGUF file.

The part of the prompt before the document is the same for all, so its key-values are computed once and shared.
Documents are sorted by length, read in batches bounded by tokens, and written for in batches bounded by the memory of
their key-values; rows that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inranker import models
from inranker.errors import ModelError, require
from inranker.generate.backend import Completion, Request, backends, cut_at_stop
from inranker.generate.prompts import Prompt
from inranker.generate.sampling import uniforms
from inranker.models.quiet import quiet_transformers
from inranker.recipe import GenerateSettings


@backends.register("transformers")
class TransformersBackend:
    """See the module's text."""

    def __init__(self, settings: GenerateSettings, seed: int, folder: Path) -> None:
        self.settings = settings
        self.seed = seed
        self._path = models.resolve(settings.model)
        self._decoder: Any = None
        self._prefixes: dict[str, Any] = {}
        self._stops: dict[tuple[str, ...], list[int]] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files."""
        return models.fingerprint(self._path)

    def complete(self, prompt: Prompt, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in order.

        Greedy completions agree with those of a batch of one up to ties within float noise; sampled ones use random
        numbers keyed by the seed and the request's id.

        Raises:
            ModelError: the model cannot be loaded, or a prompt does not fit its context.
        """
        if self._decoder is None:
            self._load()
        tokenizer, decoder, settings = self._tokenizer, self._decoder, self.settings
        if prompt.head not in self._prefixes:
            head = tokenizer(prompt.head).input_ids
            # A tokenizer may close every text (T5-like ones do); nothing may stand between head and document.
            if head and head[-1] == tokenizer.eos_token_id:
                head = head[:-1]
            self._prefixes = {prompt.head: decoder.prefix(head)}
        prefix = self._prefixes[prompt.head]
        tail = tokenizer(prompt.tail, add_special_tokens=False).input_ids
        room = decoder.max_length - prefix.length - len(tail) - settings.max_new_tokens
        if room < min(settings.document_tokens, 16):
            raise ModelError(
                f"prompt {prompt.name!r} takes {prefix.length + len(tail)} tokens, which leaves no room for a document "
                f"in the {decoder.max_length} tokens that {settings.model} can read"
            )
        limit = min(settings.document_tokens, room)
        documents = tokenizer([f" {r.document}" for r in requests], add_special_tokens=False).input_ids
        rows = [document[:limit] + tail for document in documents]
        noise = None
        if settings.temperature > 0:
            noise = uniforms(self.seed, [r.id for r in requests], settings.max_new_tokens)
        written = decoder.write(prefix, rows, self._stop_tokens(prompt), settings, noise)
        texts = tokenizer.batch_decode([tokens for tokens, _ in written], skip_special_tokens=True)
        return [
            Completion(cut_at_stop(text, prompt.stop), log_probability)
            for text, (_, log_probability) in zip(texts, written, strict=True)
        ]

    def _load(self) -> None:
        decoding = require("inranker.generate.decoding", "distill")
        transformers = require("transformers", "distill")
        path = models.transformers_folder(self._path)
        dtype, device = decoding.precision(self.settings.dtype)
        try:
            with quiet_transformers():
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(path)
                model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path}: not a causal language model: {str(error).splitlines()[0]}") from None
        self._decoder = decoding.Decoder(model.to(device).eval())

    def _stop_tokens(self, prompt: Prompt) -> list[int]:
        """Ids of all tokens that end a query: those whose text holds a stop string, and the special ones."""
        if prompt.stop not in self._stops:
            tokenizer = self._tokenizer
            pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
            special = set(tokenizer.all_special_ids)
            self._stops[prompt.stop] = [
                i for i, piece in enumerate(pieces) if i in special or any(stop in piece for stop in prompt.stop)
            ]
        return self._stops[prompt.stop]
