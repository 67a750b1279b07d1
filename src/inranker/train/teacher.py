"""Fine-tuning of a causal teacher on hard labels, for when there is none: that is how monoT5-3B came to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inranker.label.causal import ANSWERS, load_causal, write_teacher_file
from inranker.label.teachers import pick_device, pick_dtype
from inranker.recipe import PhaseSettings, TrainTeacherSettings
from inranker.sequence import TokenSequence
from inranker.sequence_causal import DEFAULT_TEMPLATE, CausalSequences, single_token
from inranker.store import atomic_folder
from inranker.train.data import Batch, TrainingQuery, make_batch, pad_chunks, split_held_out
from inranker.train.trainer import train_phase

_LOSSES = {"listwise": {"infonce": 1.0}, "pointwise": {"bce": 1.0}}


class CausalMargin(nn.Module):
    """A causal model's margin: the difference of two answer words' logits after the last token."""

    def __init__(self, model: Any, rows: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        low, high = rows
        head = model.get_output_embeddings().weight
        # The answers' rows stay as they are: what must be learned is the state before them.
        self.register_buffer("direction", (head[high] - head[low]).detach().float(), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Margins, float32 [n], of sequences padded on the right (their padding is behind every token that matters)."""
        hidden = self.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(input_ids), device=input_ids.device), attention_mask.sum(1) - 1]
        return last.float() @ self.direction


class CausalQueries:
    """Training queries as a causal teacher reads them."""

    def __init__(self, data: Sequence[TrainingQuery], sequences: CausalSequences, chunk_tokens: int) -> None:
        self.data = data
        self._sequences = sequences
        self._chunk_tokens = chunk_tokens
        self._queries = sequences.encode_fields("query", [q.text for q in data])
        self._documents = sequences.encode_fields("document", [d for q in data for d in q.documents])

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The pairs of the queries with these numbers."""
        queries = [self.data[number] for number in numbers]
        built = [
            TokenSequence(self._sequences.build(self._queries[query.text], self._documents[text]), None)
            for query in queries
            for text in query.documents
        ]
        return make_batch(queries, pad_chunks(built, 0, self._chunk_tokens))


def train_teacher(
    settings: TrainTeacherSettings,
    data: Sequence[TrainingQuery],
    folder: str | Path,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    workers: int = 0,
) -> tuple[Path, list[dict[str, float]]]:
    """Fine-tune a causal model to tell a query's answer from its negatives.

    Args:
        settings: base model, method, optimisation.
        data: queries with grades; each batch compares whole queries.
        folder: what is written: a LoRA adapter or a whole model, and `teacher.json` with its template.
        seed: of the adapter, the held-out split and the order of the batches.
        progress: called with the number of steps newly done.
        workers: processes that prepare batches.

    Returns:
        The folder, and the history of loss and agreement with held-out grades (mean Kendall tau-b).
    """
    torch.manual_seed(seed)
    full = settings.method == "full"
    # A full fine-tuning keeps its master weights in fp32: bf16 would round small updates away.
    dtype = torch.float32 if full else pick_dtype(settings.dtype, pick_device())
    model, tokenizer = load_causal(settings.model, dtype)
    margin = CausalMargin(model, [single_token(tokenizer, word) for word in ANSWERS])
    if not full:
        margin.model = _with_adapter(model, settings)
    sequences = CausalSequences(tokenizer, DEFAULT_TEMPLATE, settings.max_length)
    training, held_out = split_held_out(data, min(0.05, 200 / max(len(data), 1)), seed)
    phase = PhaseSettings(
        data="supervised",
        labels="hard",
        loss=_LOSSES[settings.loss],
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        queries_per_batch=settings.queries_per_batch,
        evaluations=2,
    )
    history = train_phase(
        margin,
        CausalQueries(training, sequences, settings.batch_tokens),
        CausalQueries(held_out, sequences, settings.batch_tokens),
        phase,
        settings.dtype,
        Path(folder).with_name(f".{Path(folder).name}-training"),
        seed=seed,
        progress=progress,
        workers=workers,
        checkpoints=False,
    )
    with atomic_folder(folder) as temporary:
        trained = model.to(pick_dtype(settings.dtype, pick_device())) if full else margin.model.to(torch.bfloat16)
        trained.save_pretrained(temporary)
        if full:
            tokenizer.save_pretrained(temporary)
        write_teacher_file(temporary, DEFAULT_TEMPLATE)
    return Path(folder), history


def _with_adapter(model: Any, settings: TrainTeacherSettings) -> Any:
    """The model with LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer of its blocks."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear", lora_dropout=0.0)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
