"""A run in a process of its own that can be killed: slows one stage down and notes every piece of work.

    python killable_run.py RECIPE.json FOLDER LOG [STAGE]

Each line of LOG is `stage item`, written before the item counts as done.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from inranker.pipeline import distill
from inranker.recipe import parse_recipe
from inranker.store import read_json


def main(recipe: str, folder: str, log: str, slow: str = "") -> None:
    from inranker.generate.transformers import TransformersBackend
    from inranker.label.cross_encoder import CrossEncoderTeacher
    from inranker.train import trainer

    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(stage, items):
        os.write(file, "".join(f"{stage} {item}\n" for item in items).encode())
        if stage == slow:
            time.sleep(0.25)

    complete, logits, step_end = (
        TransformersBackend.complete,
        CrossEncoderTeacher.logits,
        trainer._Advance.on_step_end,
    )

    def slow_complete(self, prompt, requests):
        note("generate", [r.id for r in requests])
        return complete(self, prompt, requests)

    def slow_logits(self, pairs):
        note("label", [f"{hash_of(q)}-{hash_of(d)}" for q, d in pairs])
        return logits(self, pairs)

    def slow_step(self, args, state, control, **kwargs):
        note("train", [f"{Path(args.output_dir).name}/{state.global_step}"])
        return step_end(self, args, state, control, **kwargs)

    TransformersBackend.complete = slow_complete
    CrossEncoderTeacher.logits = slow_logits
    trainer._Advance.on_step_end = slow_step
    distill(parse_recipe(read_json(recipe)), folder, last="train")


def hash_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]


if __name__ == "__main__":
    main(*sys.argv[1:])
