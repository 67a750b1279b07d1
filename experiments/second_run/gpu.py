"""The second run's GPU work: soft labels, students, scores. `README.md` has the order of calls.

    python experiments/second_run/gpu.py all --work WORK --out OUT [--seconds 1600]
    python experiments/second_run/gpu.py STEP ARGUMENT … --work WORK --out OUT

WORK holds what `prepare.py` packed, OUT gets what the steps leave. Every step is a process of its own on one GPU,
skipped when its result is there; `all` goes through the plan.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import Work, convert, log
from runner import Runner, Step, begin_clock

from inranker.store import write_json

ARRIVALS = ("arrived-data", "arrived-model")
CELLS = ("syn-soft", "sup-soft", "syn-hard", "sup-hard")


def plan(gpus: int) -> list[Step]:
    """The steps, the dearest first. With one GPU the first run's adapter is the teacher: no time for another."""
    labels = ("labels.json", "cosines.parquet", "more.parquet")
    data, model = "arrived-data", ("base", "arrived-model")
    hard = gpus > 1

    def student(name: str, seed: int, *needs: str, seconds: float = 90) -> Step:
        soft = () if name.endswith("hard") else labels
        return Step(f"student {name} {seed}", f"scores-{name}-{seed}.parquet", (data, *soft, *needs), "small", seconds)

    def teacher(name: str, *needs: str) -> Step:
        return Step(f"score {name} dev", f"scores-{name}-dev.parquet", (*model, *needs), "large", 50)

    def label(name: str, worker: int, *needs: str) -> Step:
        return Step(f"label {name} {worker}", f"label-{name}-{worker}.done", (*model, *needs), "large", 60)

    first = [
        Step("convert", "base", ("arrived-model",), "", 90),
        Step("mine", "teacher-hard.parquet", (data,), "small", 45),
        Step("bench engine", "bench-engine.json", (data,), "alone", 140),
    ]
    if hard:
        first += [Step("train_lora hard", "teacher-hard.json", (*model, "teacher-hard.parquet"), "large", 230)]
    first += [
        Step("more", "more.parquet", model, "large", 120),
        Step("near", "cosines.parquet", (data, "more.parquet"), "small", 40),
    ]
    if hard:
        first += [Step("train_lora mix", "teacher-mix.json", (*model, "teacher-hard.parquet"), "large", 230)]
        first += [teacher("hard", "teacher-hard.json")]
    first += [teacher("first")]
    if hard:
        first += [teacher("mix", "teacher-mix.json")]
    wants = ("scores-hard-dev.parquet", "scores-mix-dev.parquet") if hard else ()
    needs = ("scores-first-dev.parquet", "teacher-hard.parquet")
    first += [Step("choose", "chosen.json", needs, "", 5, wants, 760)]
    # The first of the candidates to be measured labels till another one is chosen.
    early = {"hard": ("scores-hard-dev.parquet", "scores-first-dev.parquet")} if hard else {}
    for name in ("hard", "mix", "first") if hard else ("first",):
        first += [label(name, n, "more.parquet", *early.get(name, (f"chosen-{name}",))) for n in range(gpus)]
    # While pieces are still on their way the GPUs learn hard labels.
    students = [
        student("sup-hard", 1),
        student("syn-hard", 1),
        student("sup-hard", 2),
        student("syn-hard", 2),
        student("syn-soft", 1),
        student("long", 1, seconds=170),
        student("sup-soft", 1),
    ]
    tests = [
        Step(f"score chosen test{n}", f"scores-teacher-test{n}.parquet", (*model, "labels.json"), "large", 90)
        for n in (0, 1)
    ]
    nano = [student("nano", 1, "weights-long-1.tar", seconds=130)]
    more = [student(name, seed) for seed in (2, 3) for name in CELLS]
    last = [student(name, 1) for name in ("fold-a", "fold-b")] + [teacher("ql")]
    last += [Step(f"bench {name}", f"bench-{name}.json", model, "alone", 150) for name in ("teacher", "t5")]
    last += [student("all", 1)]
    last += [student(name, 1) for name in ("only-1000", "only-4000", "mse", "margin_mse", "kl", "ranknet", "both")]
    last += [student("three", 1, "weights-long-1.tar", seconds=140)]
    last += [student("long", seed, seconds=170) for seed in (2, 3)]
    last += [Step("train_full", "teacher-full.json", (*model, "labels.json"), "alone", 260)]
    last += [teacher("full", "teacher-full.json")]
    return list(dict.fromkeys([*first, *students, *tests, *nano, *more, *last]))


def run_all(w: Work, seconds: float, gpus: int, inline: bool) -> None:
    """Go through the plan; `inline` calls the steps in this process, one after another."""
    from teachers import release_claims

    begin_clock(w.out)
    release_claims(w.out)
    names = [str(n) for n in range(gpus)]
    start = (lambda name, gpu, attempt: Called(w, name)) if inline else Launcher(w)
    everything = plan(gpus)
    Runner(everything, start, lambda text: log(w, text), w.out, names, seconds, ARRIVALS, "labels.json").run()


class Called:
    """A step that was called in this process: done as soon as it exists."""

    def __init__(self, w: Work, name: str) -> None:
        step(w, name.split())

    def poll(self) -> int:
        """Its exit status."""
        return 0


class Launcher:
    """Starts steps as processes that see one GPU, their output in a file each."""

    def __init__(self, w: Work) -> None:
        self._w = w
        self._cores = str(max((os.cpu_count() or 4) // 4, 1))

    def __call__(self, name: str, gpu: str, attempt: int) -> subprocess.Popen:
        """Begin a step on a GPU (none where the name is empty)."""
        w, words = self._w, name.split()
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": gpu,
            "ATTEMPT": str(attempt),
            "OMP_NUM_THREADS": self._cores,
            "RAYON_NUM_THREADS": self._cores,
            "TOKENIZERS_PARALLELISM": "true",
        }
        options = ["--work", str(w.work), "--out", str(w.out), *(["--tiny"] if w.tiny else [])]
        with (w.out / f"step-{'-'.join(words)}.txt").open("a") as output:
            command = [sys.executable, __file__, *words, *options]
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def step(w: Work, words: list[str]) -> None:
    """One step by its name and arguments."""
    import students
    import teachers

    calls: dict[str, Any] = {
        "convert": convert,
        "mine": teachers.mine,
        "more": teachers.more,
        "near": teachers.near,
        "bench": bench,
        "train_lora": teachers.train_lora,
        "train_full": teachers.train_full,
        "score": teachers.score,
        "choose": teachers.choose,
        "label": teachers.label,
        "student": students.train,
    }
    calls[words[0]](w, *words[1:])


def bench(w: Work, name: str) -> None:
    """One of the package's GPU benchmarks, on this work's texts."""
    leaves = w.out / f"bench-{name}.json"
    tokenizer = w.out / "bench-tokenizer"
    tokenizer.mkdir(exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(w.work / "minilm" / file, tokenizer / file)
    corpus = ["--corpus", str(w.work / "scifact")]
    options = {
        "engine": ["--model", str(tokenizer), *corpus, "--peer-pairs", "8000", "--repeats", "5", "--out", str(leaves)],
        "teacher": ["--model", w.base, *corpus, "--pairs", "4096", "--compile", "--out", str(leaves)],
        "t5": ["--shapes", "t5-base", "t5-3b", "--variants", "flex, wo TF32", "flex, wo bf16", "sdpa, wo TF32"],
    }
    script = Path(__file__).parents[2] / "benchmarks" / f"gpu_{name}.py"
    run = subprocess.run([sys.executable, str(script), *options[name]], check=True, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(run.stdout)
    if name == "t5":
        write_json(leaves, {"lines": run.stdout.splitlines()})


def main() -> None:
    """Run one step, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=1600, help="of the clock: no step begins that ends later")
    parser.add_argument("--gpus", type=int, default=0, help="0: as many as there are")
    arguments = parser.parse_args()
    w = Work(arguments.work, arguments.out, arguments.tiny)
    if arguments.step != ["all"]:
        step(w, arguments.step)
        return
    import torch

    run_all(w, arguments.seconds, arguments.gpus or max(torch.cuda.device_count(), 1), inline=False)


if __name__ == "__main__":
    main()
