"""Two layers out of six: the first learns what the teacher's first five do to every token, the last is the teacher's.

    python experiments/first_mini/nano.py TEACHER LABELS PREPARED OUT [--minutes 20]

A margin is one number a pair; the states of all tokens are thousands, and a cut ranker has lost its way between layers,
not its last layer's judgement. So the student is the teacher's layers 0 and 5, and is trained to give layer 5 the input
that it knows (mean squared error of the normalised states), beside the margins. The batches are whole queries; the
learning rate falls linearly with the time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from labels import read_contents, shuffled_rows, training_queries
from torch.nn import functional

from inranker.train.data import TokenizedQueries, TrainingQuery
from inranker.train.losses import LOSSES, Scores
from inranker.train.students import OneLogit, keep_layers, load_student
from inranker.train.trainer import agreement, score_queries


def main(a: argparse.Namespace) -> None:
    """Train for some minutes and save."""
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    contents = read_contents(a.prepared)
    rows = shuffled_rows(a.labels, a.seed)
    data = training_queries(rows, contents, a.candidates)
    teacher, student = load_student(a.teacher, max_length=a.length), load_student(a.teacher, max_length=a.length)
    keep_layers(student.model, a.layers)
    module = student.module = OneLogit(student.model)
    teacher.module.eval()
    module.eval()  # No dropout: every state is to be met exactly.
    student.model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=a.rate, weight_decay=0.01)
    held = data[:120]
    held_out = TokenizedQueries(held, student.sequences, student.pad_id, 4096)
    training = TokenizedQueries(data[120:], student.sequences, student.pad_id, 4096)
    scored = score_queries(teacher.module, held_out, 8)
    sys.stdout.write(
        f"teacher {agreement(scored, held):.4f}, cut {agreement(score_queries(module, held_out, 8), held):.4f}\n"
    )
    from_teacher = [TrainingQuery(q.id, q.text, q.documents, q.grades, s) for q, s in zip(held, scored, strict=True)]
    started, step, sums = time.monotonic(), 0, np.zeros(3)
    while (done := (time.monotonic() - started) / (60 * a.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = a.rate * min(1.0, (step + 1) / 50) * (1 - done)
        first = step * a.batch % (len(training.data) - a.batch)
        batch = training.batch(range(first, first + a.batch))
        inputs = [{k: torch.from_numpy(v) for k, v in c._asdict().items() if k != "place"} for c in batch.chunks]
        places = torch.from_numpy(np.concatenate([c.place for c in batch.chunks]))
        losses, mine, theirs = [], [], []
        for chunk in inputs:
            with torch.no_grad():
                states, margin = forward(teacher.model, chunk)
            mine_states, mine_margin = forward(student.model, chunk)
            mask = chunk["attention_mask"].bool()
            losses += [(relative_error(mine_states[-2], states[-2], mask), relative_error(mine_states[-1], states[-1]))]
            mine.append(mine_margin)
            theirs.append(margin)
        y, t = torch.cat(mine), torch.cat(theirs)
        group, margins = torch.from_numpy(batch.group), torch.from_numpy(batch.margins)
        order = torch.argsort(places)
        t = (1 - a.fused) * t[order] + a.fused * a.scale * margins
        rank = LOSSES["margin_mse"](Scores(y[order], t, torch.from_numpy(batch.grades), group))
        parts = [torch.stack([pair[k] for pair in losses]).mean() for k in range(2)] + [rank]
        total = a.states * (parts[0] + parts[1]) + a.rank * parts[2]
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        sums += [float(p) for p in parts]
        step += 1
        if step % a.report == 0:
            margins_now = score_queries(module, held_out, 8)
            sys.stdout.write(
                f"{step} steps, {time.monotonic() - started:.0f} s, states, first token, margins "
                f"{(sums / a.report).round(3)}, tau to labels {agreement(margins_now, held):.4f}, "
                f"to teacher {agreement(margins_now, from_teacher):.4f}\n"
            )
            sys.stdout.flush()
            sums[:] = 0
    student.save(a.out)


def forward(model: torch.nn.Module, chunk: dict[str, torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """States after each layer (of the last one only the first token's), and margins."""
    outputs = model(**chunk, output_hidden_states=True)
    return outputs.hidden_states, outputs.logits[:, 0]


def relative_error(mine: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Squared error of normalised states, mean over tokens: 0 where they are alike, 2 for strangers."""
    if mask is not None:
        mine, theirs = mine[mask], theirs[mask]
    size = mine.shape[-1:]
    return (functional.layer_norm(mine, size) - functional.layer_norm(theirs, size)).square().mean()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("teacher", "labels", "prepared", "out"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 5])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--states", type=float, default=1.0)
    parser.add_argument("--rank", type=float, default=0.1)
    parser.add_argument("--fused", type=float, default=0.5, help="share of the labels in the margins' target")
    parser.add_argument("--scale", type=float, default=0.4)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    main(parser.parse_args())
