"""One phase of training: transformers' Trainer over batches of whole queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from inranker.recipe import PhaseSettings
from inranker.train.agreement import mean_kendall_tau
from inranker.train.data import Batch, BatchPlan, QuerySource, TrainingQuery
from inranker.train.guide import Guide
from inranker.train.losses import Scores, mix

# A chunk as tensors: the student's arguments, and each row's `place` in the batch.
Inputs = dict[str, Tensor]


class PhaseModel(nn.Module):
    """A student with its loss: scores a batch's chunks, puts the margins back in order, and compares."""

    def __init__(self, student: nn.Module, phase: PhaseSettings, guide: Guide | None = None) -> None:
        super().__init__()
        self.student = student
        self._loss = mix(phase.loss)
        self._phase = phase
        self._guide = guide  # No module of this one: it is neither trained nor kept in checkpoints.

    def forward(self, chunks: list[Inputs], group: Tensor, margins: Tensor, grades: Tensor) -> dict[str, Tensor]:
        """`loss` (a number) and `margins` of the student, float32 [n]."""
        if self._guide is None:
            y, distance = score_chunks(self.student, chunks), margins.new_zeros(())
        else:
            y, distance = self._follow(self._guide, chunks)
        scores = Scores(y, margins * self._phase.scale, grades, group, self._phase.temperature)
        return {"loss": self._loss(scores) + self._phase.states * distance, "margins": y}

    def _follow(self, guide: Guide, chunks: list[Inputs]) -> tuple[Tensor, Tensor]:
        student: Any = self.student
        parts = [guide.follow(student, _arguments(chunk)) for chunk in chunks]
        rows = torch.tensor([len(margins) for margins, _ in parts], device=parts[0][1].device)
        distances = torch.stack([distance for _, distance in parts])
        return _in_order([margins for margins, _ in parts], chunks), (distances * rows).sum() / rows.sum()


def score_chunks(module: nn.Module, chunks: list[Inputs]) -> Tensor:
    """A batch's margins in the batch's order, float32 [n]."""
    return _in_order([module(**_arguments(chunk)) for chunk in chunks], chunks)


def _arguments(chunk: Inputs) -> Inputs:
    """The student's, of a chunk."""
    return {name: chunk[name] for name in chunk if name != "place"}


def _in_order(margins: list[Tensor], chunks: list[Inputs]) -> Tensor:
    y = torch.cat(margins)
    return torch.empty_like(y).index_put((torch.cat([c["place"] for c in chunks]),), y)


class PhaseTrainer(Trainer):
    """Trainer whose dataset is a fixed plan of batches, and whose evaluation is agreement with the teacher."""

    def __init__(self, *args: Any, held_out: QuerySource, queries_per_batch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held_out = held_out
        self._queries_per_batch = queries_per_batch

    def get_train_dataloader(self) -> DataLoader:
        """Batches in the plan's order; Trainer's own skipping resumes in the middle of it."""
        plan: Any = self.train_dataset
        loader: DataLoader = DataLoader(
            plan,
            batch_size=1,  # of batches: without a size there is no batch sampler, and resuming skips on one
            sampler=SequentialSampler(plan),
            num_workers=self.args.dataloader_num_workers,
            collate_fn=_only_batch,
            pin_memory=self.args.device.type == "cuda",
            prefetch_factor=8 if self.args.dataloader_num_workers else None,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The phase's loss of one batch."""
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # T5 shares its embeddings, and a safetensors file holds a tensor under one name only.
        model: Any = self.model
        state = model.state_dict() if state_dict is None else state_dict
        once = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
        super()._save(output_dir, {name: state[name] for name in once.values()})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """What a checkpoint lacks are the other names of shared tensors: nothing to warn of."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean Kendall tau-b with the teacher on the held-out queries."""
        model: Any = self.model
        scores = score_queries(model.student, self._held_out, self._queries_per_batch, self.args.bf16)
        metrics = {"eval_agreement": agreement(scores, self._held_out.data)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def agreement(scores: Sequence[NDArray[np.float32]], data: Sequence[TrainingQuery]) -> float:
    """Mean Kendall tau-b with the teacher's margins, or with the grades where there is no teacher."""
    reference = [q.margins if q.margins is not None else q.grades.astype(np.float32) for q in data]
    return mean_kendall_tau(scores, reference)


def score_queries(
    module: nn.Module, queries: QuerySource, queries_per_batch: int = 32, bf16: bool = False
) -> list[NDArray[np.float32]]:
    """A student's margins of each query's candidates."""
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    out: list[NDArray[np.float32]] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(queries.data), queries_per_batch):
            numbers = range(start, min(start + queries_per_batch, len(queries.data)))
            batch = [
                {name: value.to(device) for name, value in chunk.items()}
                for chunk in _to_tensors(queries.batch(numbers))["chunks"]
            ]
            flat = score_chunks(module, batch).float().cpu().numpy()
            ends = np.cumsum([len(queries.data[n].documents) for n in numbers])[:-1]
            out.extend(np.split(flat, ends))
    module.train(was_training)
    return out


def train_phase(
    module: nn.Module,
    training: QuerySource,
    held_out: QuerySource,
    phase: PhaseSettings,
    dtype: str,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    workers: int = 0,
    checkpoints: bool = True,
    guide: Guide | None = None,
) -> list[dict[str, float]]:
    """Train `module` in place, ending with the checkpoint that agreed best with the teacher on `held_out`.

    A `guide`, where the phase's `states` asks for one, shows it the way of the ranker that it was cut from.

    Checkpoints in `folder` let a killed run go on; without `checkpoints` nothing is written and the last state stays.
    Returns the history: step, loss, learning rate, agreement.
    """
    plan = BatchPlan(training, phase.queries_per_batch, phase.epochs, seed)
    on_gpu = torch.cuda.is_available()
    every = max(len(plan) // phase.evaluations, 1)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=len(plan),
        per_device_train_batch_size=1,
        learning_rate=phase.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(phase.warmup * len(plan)),
        weight_decay=phase.weight_decay,
        bf16=on_gpu and dtype in ("auto", "bfloat16"),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps" if checkpoints else "no",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=checkpoints,
        metric_for_best_model="agreement",
        greater_is_better=True,
        logging_steps=max(len(plan) // 50, 1),
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not on_gpu,
    )
    trainer = PhaseTrainer(
        model=PhaseModel(module, phase, guide),
        args=arguments,
        train_dataset=plan,
        eval_dataset=[None],  # Trainer insists on one; ours is `held_out`.
        held_out=held_out,
        queries_per_batch=phase.queries_per_batch,
        callbacks=[_Advance(progress), *([EarlyStoppingCallback(phase.patience)] if checkpoints else [])],
    )
    trainer.remove_callback(PrinterCallback)  # Progress is the caller's to show.
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    return [
        {key: value for key, value in entry.items() if key in ("step", "loss", "learning_rate", "eval_agreement")}
        for entry in trainer.state.log_history
    ]


class _Advance(TrainerCallback):
    """Tells the progress display of each step, those found done included."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(1)


def _only_batch(batches: list[Batch]) -> dict[str, Any]:
    """The loader's items are batches already."""
    return _to_tensors(batches[0])


def _to_tensors(batch: Batch) -> dict[str, Any]:
    """The model's arguments, as tensors."""
    chunks = [
        {name: torch.from_numpy(array) for name, array in chunk._asdict().items() if array is not None}
        for chunk in batch.chunks
    ]
    return {
        "chunks": chunks,
        **{name: torch.from_numpy(getattr(batch, name)) for name in ("group", "margins", "grades")},
    }
