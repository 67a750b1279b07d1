"""The classes of the published package (1.1.0) over this one's parts: what was written for it goes on running."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from inranker.batching import plan_batches
from inranker.errors import InputError, require
from inranker.label.published import TextLabel, read_msmarco_labels, read_text_labels
from inranker.models import resolve
from inranker.sequence import ModelSettings
from inranker.sequence_t5 import t5_sequences
from inranker.store import fingerprint


class T5Ranker:
    """A monoT5 scored in torch, with the interface and, by default, the token sequences of the published package.

    Args:
        model_name_or_path: a folder, a known name or a Hugging Face Hub id.
        fp16, bf16: half precision; each layer's output projection stays in fp32.
        fp8: 8-bit matrices through bitsandbytes, as the published package did under this name.
        batch_size: the most pairs a forward pass.
        device: a torch device; None: a GPU where there is one.
        silent: no progress on standard error.

    A folder that this package trained is fed as it was trained; any other in `legacy` mode.
    """

    def __init__(
        self,
        model_name_or_path: str = "unicamp-dl/InRanker-base",
        *,
        fp16: bool = False,
        bf16: bool = False,
        fp8: bool = False,
        batch_size: int = 32,
        device: str | None = None,
        silent: bool = True,
    ) -> None:
        torch = require("torch", "distill")
        from inranker.t5.model import load_t5

        if fp16 + bf16 + fp8 > 1:
            raise InputError("fp16, bf16 and fp8: choose one")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: it must be 1 or more")
        folder = resolve(model_name_or_path)
        settings = ModelSettings.read(folder) or ModelSettings("t5", "legacy")
        dtype = torch.float16 if fp16 or fp8 else torch.bfloat16 if bf16 else torch.float32
        self.model, self.tokenizer, self.settings = load_t5(folder, settings, dtype, int8=fp8)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size
        self.silent = silent
        if fp8:
            self.device = self.model.model.device
        self.model = self.model.to(self.device).eval()

    @overload
    def get_scores(
        self, query: str, docs: Sequence[str], max_length: int = 512, return_logits: Literal[False] = False
    ) -> list[float]: ...

    @overload
    def get_scores(
        self, query: str, docs: Sequence[str], max_length: int = 512, *, return_logits: Literal[True]
    ) -> tuple[list[float], list[list[float]]]: ...

    def get_scores(
        self, query: str, docs: Sequence[str], max_length: int = 512, return_logits: bool = False
    ) -> list[float] | tuple[list[float], list[list[float]]]:
        """Probabilities that documents are relevant to a query, in the order of `docs`.

        With `return_logits` also the raw logits, [false, true] a document.
        """
        import torch

        settings = replace(self.settings, max_length=max_length)
        builder = t5_sequences(self.tokenizer, settings, self.model.model.config.model_type)
        sequences = [s.input_ids for s in builder.pairs([(query, text) for text in docs])]
        logits = np.zeros((len(docs), 2), dtype=np.float32)
        with self._progress(len(docs)) as advance, torch.inference_mode():
            for rows in plan_batches([len(s) for s in sequences], 16384, self.batch_size):
                ids = torch.zeros(len(rows), len(sequences[rows[0]]), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, i in enumerate(rows):
                    ids[row, : len(sequences[i])] = torch.tensor(sequences[i])
                    mask[row, : len(sequences[i])] = 1
                logits[rows] = self.model.logits(ids.to(self.device), mask.to(self.device)).cpu().numpy()
                advance(len(rows))
        margins = logits[:, 1].astype(np.float64) - logits[:, 0]
        scores = (1 / (1 + np.exp(-np.clip(margins, -700, 700)))).tolist()
        return (scores, logits.tolist()) if return_logits else scores

    def _progress(self, total: int) -> Any:
        if self.silent:
            from contextlib import nullcontext

            return nullcontext(lambda done: None)
        from inranker.cli.progress import progress

        return progress(total, "scoring")


class InRankerTrainer:
    """Deprecated front of `inranker.train.train_student` under the published package's names.

    `logging_steps`, `save_steps` and `gradient_checkpointing` are taken and ignored: checkpoints are kept, and history
    is written, as `train_student` does. Of `device`, `cpu` alone has an effect.
    """

    def __init__(
        self,
        model: str = "t5-small",
        batch_size: int = 32,
        warmup_steps: int = 20000,
        num_train_epochs: float = 1.0,
        logging_steps: int = 1000,
        save_steps: int = 40000,
        learning_rate: float = 7e-5,
        gradient_accumulation_steps: int = 1,
        bf16: bool = False,
        gradient_checkpointing: bool = False,
        device: str = "",
        output_dir: str = "trained_model",
    ) -> None:
        warnings.warn(
            "InRankerTrainer is deprecated: use `inranker distill` or inranker.train.train_student",
            DeprecationWarning,
            stacklevel=2,
        )
        self.model = model
        self.batch_size = batch_size * gradient_accumulation_steps
        self.warmup_steps = warmup_steps
        self.epochs = num_train_epochs
        self.learning_rate = learning_rate
        self.bf16 = bf16
        self.output_dir = Path(output_dir)
        self.max_length = 512

    def load_custom_dataset(self, distill_file: str, max_length: int = 512) -> list[Any]:
        """Training queries of a JSONL file with `query`, `contents`, `true_logit` and `false_logit`."""
        self.max_length = max_length
        return group_by_query(read_text_labels(distill_file))

    def load_msmarco_dataset(
        self,
        msmarco_tsv_file: str,
        collection: str = "ir_datasets:msmarco-passage/train",
        max_length: int = 512,
        limit: int = 12_800_000,
    ) -> list[Any]:
        """Training queries of the MS MARCO file, its first `limit` pairs, with the texts of a collection."""
        from itertools import islice

        from inranker.collection import read_collection
        from inranker.recipe import CollectionSettings
        from inranker.train.data import join_labels

        self.max_length = max_length
        labels: dict[str, list[Any]] = {}
        for label in islice(read_msmarco_labels(msmarco_tsv_file), limit):
            labels.setdefault(label.query_id, []).append(label)
        wanted = {label.document_id for rows in labels.values() for label in rows}
        data = read_collection(CollectionSettings(source=collection, split="train"))
        contents = {d.id: d.content for d in data.documents if d.id in wanted}
        relevant = {query: {d for d, grade in judged.items() if grade > 0} for query, judged in data.qrels.items()}
        return join_labels({q.id: q.text for q in data.queries}, contents, labels, relevant)

    def train(self, train_dataset: Sequence[Any], resume_training: bool = False) -> Any:
        """Train with InRanker's loss; the student is in `output_dir/student`. A stopped run goes on by itself.

        Raises:
            InputError: there is nothing to train on.
        """
        from inranker.recipe import PhaseSettings, StudentSettings, TrainSettings
        from inranker.train import train_student

        if not train_dataset:
            raise InputError("no query has two labelled documents: there is nothing to train on")
        pairs = sum(len(query.documents) for query in train_dataset)
        queries_per_batch = max(round(self.batch_size * len(train_dataset) / pairs), 1)
        steps = max(math.ceil(len(train_dataset) / queries_per_batch) * self.epochs, 1)
        phase = PhaseSettings(
            data="supervised",
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            queries_per_batch=queries_per_batch,
            warmup=min(self.warmup_steps / steps, 0.5),
        )
        settings = TrainSettings(phases=[phase], dtype="bfloat16" if self.bf16 else "float32")
        student = StudentSettings(kind="t5", start=self.model, max_length=self.max_length)
        return train_student(student, settings, {"supervised": list(train_dataset)}, self.output_dir, seed=0)


def group_by_query(labels: Iterable[TextLabel]) -> list[Any]:
    """Training queries out of labels that carry their texts; those with under two documents are left out.

    No grades are known: they are 0. Ids are hashes of the query's text, so that they do not depend on the file's order.
    """
    from inranker.train.data import TrainingQuery

    grouped: dict[str, list[TextLabel]] = {}
    for label in labels:
        grouped.setdefault(label.query, []).append(label)
    return [
        TrainingQuery(
            fingerprint(query)[:16],
            query,
            [label.contents for label in rows],
            np.zeros(len(rows), dtype=np.int64),
            np.array([label.true_logit - label.false_logit for label in rows], dtype=np.float32),
        )
        for query, rows in grouped.items()
        if len(rows) > 1
    ]
