"""The vLLM back-end: large models on GPUs, with vLLM's own batching and prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inranker import models
from inranker.errors import require
from inranker.generate.backend import Completion, Request, backends, cut_at_stop
from inranker.generate.prompts import Prompt
from inranker.generate.sampling import keyed_hash
from inranker.recipe import GenerateSettings


@backends.register("vllm")
class VLLMBackend:
    """Sampling is seeded by the run's seed and the query's id; greedy results vary with vLLM's version and batching."""

    def __init__(self, settings: GenerateSettings, seed: int, folder: Path) -> None:
        self._vllm = require("vllm", "vllm")
        self.settings = settings
        self.seed = seed
        self._path = models.resolve(settings.model)
        self._model: Any = None

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files."""
        return models.fingerprint(self._path)

    def complete(self, prompt: Prompt, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in order."""
        settings = self.settings
        if self._model is None:
            folder = str(models.transformers_folder(self._path))
            self._model = self._vllm.LLM(model=folder, dtype=settings.dtype, enable_prefix_caching=True)
        tokenizer = self._model.get_tokenizer()
        head = tokenizer.encode(prompt.head)
        tail = tokenizer.encode(prompt.tail, add_special_tokens=False)
        texts, sampling = [], []
        for request in requests:
            document = tokenizer.encode(f" {request.document}", add_special_tokens=False)[: settings.document_tokens]
            texts.append({"prompt_token_ids": [*head, *document, *tail]})
            sampling.append(
                self._vllm.SamplingParams(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_tokens=settings.max_new_tokens,
                    min_tokens=1,
                    stop=list(prompt.stop),
                    logprobs=0,
                    seed=keyed_hash(self.seed, request.id) >> 33 if settings.temperature else None,
                )
            )
        outputs = [output.outputs[0] for output in self._model.generate(texts, sampling, use_tqdm=False)]
        return [
            Completion(cut_at_stop(output.text, prompt.stop), output.cumulative_logprob / max(len(output.token_ids), 1))
            for output in outputs
        ]
