"""`Reranker`: a model folder in, an order out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from inranker.errors import InputError, ModelError
from inranker.rank.backend import Backend, load_backend
from inranker.rank.folder import ModelFolder, Sequences
from inranker.rank.fusion import fuse_scores
from inranker.rank.inputs import document_text
from inranker.rank.work import Tokenized, Work
from inranker.types import Ranked

Passages = Literal["truncate", "max"]


class Reranker:
    """Scores (query, document) pairs with one model. Safe to use from several threads."""

    def __init__(self, folder: ModelFolder, sequences: Sequences, backend: Backend) -> None:
        self.folder = folder
        self.sequences = sequences
        self.backend = backend

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = "inranker-mini",
        backend: str = "auto",
        *,
        precision: str = "auto",
        threads: int | None = None,
        device: str | None = None,
        batch_tokens: int | None = None,
    ) -> Reranker:
        """Load a ranker.

        Args:
            name_or_path: a model folder, a name that `inranker models` lists, or a Hugging Face Hub id.
            backend: `native`, `onnx`, `torch`, `openvino`, or `auto`.
            precision: `fp32`, `int8`, `bf16`, or `auto` (the fastest that passed its gate).
            threads: CPU threads; None: the cores that this process may use.
            device: torch only: `cuda`, `cuda:1`, `cpu`; None: a GPU where there is one.
            batch_tokens: tokens a forward pass, which bounds the memory; None: the back-end's default.

        Raises:
            ModelError: no such model, or a damaged one.
            MissingExtra: the back-end's package is not installed.
        """
        path = Path(name_or_path)
        if not path.is_dir():
            from inranker.models import resolve

            path = resolve(str(name_or_path))
        folder = ModelFolder.open(path)
        loaded = load_backend(folder, backend, precision, threads=threads, device=device, batch_tokens=batch_tokens)
        return cls(folder, folder.sequences(), loaded)

    def rank(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, Any]],
        top_n: int | None = None,
        *,
        return_documents: bool = False,
        prior: Sequence[float] | None = None,
        weight: float | None = None,
        fields: Sequence[str] = ("title", "text"),
        passages: Passages = "truncate",
    ) -> list[Ranked]:
        """Order documents by relevance to a query, best first; equal documents keep their order.

        Args:
            query: as somebody typed it.
            documents: texts, or mappings of which `fields` are joined.
            top_n: keep this many; None: all.
            return_documents: put each document's text into its result.
            prior: the first stage's scores, one a document; the order is then by the fusion of both.
            weight: this ranker's share in the fusion, 0 to 1 (0.5 where only `prior` is given).
            fields: which fields of a mapping are scored, joined by spaces.
            passages: `truncate` a long document, or score windows of it and take the `max`.

        Returns:
            `Ranked(index, score, logit, document)`: place in `documents`, calibrated probability, raw margin. Fusion
            changes the order, not these.

        Raises:
            InputError: something is no text, or the numbers of documents and priors differ.
        """
        if prior is None and weight is not None:
            raise InputError("weight is the ranker's share in a fusion: give the first stage's scores as prior, too")
        _check(top_n, passages)
        texts = [document_text(d, fields, i) for i, d in enumerate(documents)]
        # Each text once: copies of it in two batches could differ in the last digit, and would not keep their order.
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        logits = self.scores([(query, text) for text in distinct], passages=passages)[[distinct[t] for t in texts]]
        keys = logits if prior is None else fuse_scores(prior, logits, 0.5 if weight is None else weight)
        return self._order(texts, logits, keys, top_n, return_documents)

    def scores(self, pairs: Sequence[tuple[str, str]], *, passages: Passages = "truncate") -> NDArray[np.float32]:
        """Margins (raw logits), float32 [n], in the order of the pairs of (query, document).

        Raises:
            InputError: something is no text.
            ModelError: the model gave a NaN.
        """
        _check(None, passages)
        result = np.empty(len(pairs), dtype=np.float32)
        tokenized = Tokenized(self.sequences, whole=passages == "max")
        step = self.backend.chunk
        starts = range(0, len(pairs), step)
        with ThreadPoolExecutor(1, thread_name_prefix="inranker-tokenize") as ahead:
            # The next chunk is tokenized while this one is scored.
            waiting = ahead.submit(tokenized.work, pairs[:step])
            for start in starts:
                work = waiting.result()
                if start + step < len(pairs):
                    waiting = ahead.submit(tokenized.work, pairs[start + step : start + 2 * step])
                result[start : start + step] = self._margins(work, pairs[start : start + step])
        return result

    def rank_many(
        self,
        requests: Iterable[tuple[str, Sequence[str | Mapping[str, Any]]]],
        top_n: int | None = None,
        *,
        return_documents: bool = False,
        fields: Sequence[str] = ("title", "text"),
        passages: Passages = "truncate",
    ) -> Iterator[list[Ranked]]:
        """Rank a stream of (query, documents), one result list a request, in order; arguments as in `rank`.

        Requests are scored together until a chunk is full, so that short ones keep the machine busy, too.
        """
        _check(top_n, passages)
        for waiting in _in_chunks(requests, self.backend.chunk):
            texts = [[document_text(d, fields, i) for i, d in enumerate(documents)] for _, documents in waiting]
            pairs = [(query, text) for (query, _), many in zip(waiting, texts, strict=True) for text in many]
            logits = self.scores(pairs, passages=passages)
            start = 0
            for many in texts:
                mine = logits[start : start + len(many)]
                start += len(many)
                yield self._order(many, mine, mine, top_n, return_documents)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities of relevance: sigmoid(a * logit + b), in float64 so that near values do not tie."""
        scale, offset = self.folder.settings.calibration or (1.0, 0.0)
        return 1.0 / (1.0 + np.exp(-np.clip(scale * logits.astype(np.float64) + offset, -700, 700)))

    def _margins(self, work: Work, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        margins = self.backend.margins_of(work, self.sequences)
        bad = np.flatnonzero(~np.isfinite(margins))
        if bad.size:
            raise ModelError(
                f"{self.folder.path} ({self.backend.name}, {self.backend.precision}) gave no finite number for the "
                f"query {pairs[work.owner[bad[0]]][0][:60]!r}; try precision='fp32'"
            )
        if len(margins) == len(pairs):
            return margins
        result = np.full(len(pairs), -np.inf, dtype=np.float32)
        np.maximum.at(result, work.owner, margins)
        return result

    def _order(
        self,
        texts: Sequence[str],
        logits: NDArray[np.float32],
        keys: NDArray[np.floating],
        top_n: int | None,
        return_documents: bool,
    ) -> list[Ranked]:
        probabilities = self.probabilities(logits)
        return [
            Ranked(int(i), float(probabilities[i]), float(logits[i]), texts[i] if return_documents else None)
            for i in np.argsort(-keys, kind="stable")[:top_n]
        ]

    def close(self) -> None:
        """Free the model; the object cannot be used afterwards."""
        self.backend.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(top_n: int | None, passages: str) -> None:
    if top_n is not None and top_n < 0:
        raise InputError(f"top_n is {top_n}: it must be 0 or more")
    if passages not in ("truncate", "max"):
        raise InputError(f"passages is {passages!r}; known: truncate, max")


def _in_chunks(
    requests: Iterable[tuple[str, Sequence[str | Mapping[str, Any]]]], chunk: int
) -> Iterator[list[tuple[str, Sequence[str | Mapping[str, Any]]]]]:
    waiting: list[tuple[str, Sequence[str | Mapping[str, Any]]]] = []
    size = 0
    for request in requests:
        waiting.append(request)
        size += len(request[1])
        if size >= chunk:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting
