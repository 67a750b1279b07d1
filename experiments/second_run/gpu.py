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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import Work, convert, log
from runner import Runner, Step, begin_clock
from students import NARRATIVES, PLANS

from inranker.store import write_json

ARRIVALS = ("arrived-data", "arrived-model")
CROWD = 3  # students on a GPU at a time: one alone leaves a third of it idle
CELLS = ("syn-soft", "sup-soft", "syn-hard", "sup-hard")


def plan(gpus: int, large: bool = True, only: Sequence[str] = ()) -> list[Step]:
    """The steps, the dearest first; only the students unless `large`, or only those of the names in `only`.

    With one GPU the first run's adapter is the teacher: no time for another.
    """
    labels = ("labels.json", "cosines.parquet", "more.parquet")
    data, model = "arrived-data", ("base", "arrived-model")
    mix = gpus > 1

    def student(name: str, seed: int, *needs: str, kind: str = "small", seconds: float = 100) -> Step:
        soft = () if name.endswith("hard") else labels
        soft += tuple(PLANS[name].tables)
        return Step(f"student {name} {seed}", f"scores-{name}-{seed}.parquet", (data, *soft, *needs), kind, seconds)

    def teacher(name: str, *needs: str) -> Step:
        return Step(f"score {name} dev", f"scores-{name}-dev.parquet", (*model, *needs), "large", 50)

    def label(name: str, worker: int, *needs: str) -> Step:
        return Step(f"label {name} {worker}", f"label-{name}-{worker}.done", (*model, *needs), "large", 60)

    first = [
        Step("convert", "base", ("arrived-model",), "", 90),
        Step("mine", "teacher-mix.parquet", (data,), "small", 35),
        Step("bench teacher", "bench-teacher.json", (data,), "alone", 150),
    ]
    if mix:
        first += [Step("train_mix", "teacher-mix.json", (*model, "teacher-mix.parquet"), "large", 200)]
    first += [
        Step("more", "more.parquet", model, "large", 100),
        Step("near", "cosines.parquet", (data, "more.parquet"), "small", 30),
        teacher("first"),
    ]
    if mix:
        first += [teacher("mix", "teacher-mix.json")]
    wants = ("scores-mix-dev.parquet",) if mix else ()
    first += [Step("choose", "chosen.json", ("scores-first-dev.parquet", "teacher-mix.parquet"), "", 5, wants, 620)]
    first += [label(name, n, "more.parquet", f"chosen-{name}") for name in ("mix", "first") for n in range(gpus)]
    # The longest asks for most of a GPU; while pieces are still on their way, students learn hard labels.
    free = Step("free", "free.parquet", (data, *labels), "small", 70)
    passages = Step("free passages", "passages.parquet", (data, *labels), "small", 70)
    narratives = [
        Step(f"narratives {n}", leaves, (*model, *labels), "large", 200) for n, leaves in enumerate(NARRATIVES)
    ]
    deep = [student("deep", seed, "weights-wide-1.tar", seconds=900) for seed in (1, 2, 3)]
    deep += [student(name, 1, seconds=900) for name in ("deep-a", "deep-b")]
    ready = tuple(s.leaves for s in deep[:3])
    deep += [student("nano-wide", 1, "weights-wide-1.tar", seconds=900)]
    deep += [Step("soup deep", "scores-deep-soup-1.parquet", ready, "small", 20)]
    students = [
        free,
        passages,
        *narratives,
        *deep,
        student("long", 1, kind="large", seconds=400),
        student("wide", 1, seconds=900),
        student("sharp", 1, seconds=500),
        student("sup-hard", 1),
        student("syn-hard", 1),
        student("syn-soft", 1),
        student("sup-soft", 1),
    ]
    tests = [
        Step(f"score chosen test{n}", f"scores-teacher-test{n}.parquet", (*model, "labels.json"), "large", 90)
        for n in (0, 1)
    ]
    students_2 = [student("nano", 1, "weights-long-1.tar", seconds=400)]
    students_2 += [student(name, 1) for name in ("fold-a", "fold-b")]
    students_2 += [student(name, seed) for seed in (2, 3) for name in CELLS]
    last = [teacher("ql"), Step("bench t5", "bench-t5.json", (data,), "alone", 150)]
    last += [student(name, 1) for name in ("all", "only-1000", "only-4000")]
    last += [student(name, 1) for name in ("mse", "margin_mse", "kl", "ranknet", "both")]
    last += [student("three", 1, "weights-wide-1.tar", seconds=300)]
    last += [student(name, seed, seconds=500) for name in ("long", "wide") for seed in (2, 3)]
    last += [Step("train_full", "teacher-full.json", (*model, "labels.json"), "alone", 260)]
    last += [teacher("full", "teacher-full.json")]
    steps = [*first, *students, *tests, *students_2, *last]
    if only:
        return [s for s in steps if s.name in only]
    return steps if large else [s for s in steps if s.name.startswith(("free", "student"))]


def run_all(
    w: Work, seconds: float, gpus: int, inline: bool, large: bool = True, only: Sequence[str] = (), most: int = 0
) -> None:
    """Go through the plan; `inline` calls the steps in this process, one after another; `most` as `Runner` has it."""
    from teachers import release_claims

    begin_clock(w.out)
    release_claims(w.out)
    names = [str(n) for n in range(gpus)]
    start = (lambda name, gpu, attempt: Called(w, name)) if inline else Launcher(w)
    everything = plan(gpus, large, only)
    arrivals = ARRIVALS if large else ARRIVALS[:1]
    most = most or (2 if large else CROWD)
    Runner(everything, start, lambda text: log(w, text), w.out, names, seconds, arrivals, "labels.json", most).run()


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
    import free
    import narratives
    import students
    import teachers

    calls: dict[str, Any] = {
        "convert": convert,
        "mine": teachers.mine,
        "more": teachers.more,
        "near": teachers.near,
        "bench": bench,
        "train_mix": teachers.train_mix,
        "train_full": teachers.train_full,
        "score": teachers.score,
        "choose": teachers.choose,
        "label": teachers.label,
        "free": free.free,
        "narratives": narratives.write,
        "soup": students.soup,
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
        "teacher": [*corpus, "--pairs", "3072", "--compile", "--out", str(leaves)],
        "t5": ["--shapes", "t5-small", "t5-base", "t5-3b"],
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
    parser.add_argument("--students", action="store_true", help="only them, from labels that came along")
    parser.add_argument("--most", type=int, default=0, help="students on a GPU; 0: two, three where there is only them")
    parser.add_argument("--only", default="", help='only these steps: "free,student wide 1"')
    arguments = parser.parse_args()
    w = Work(arguments.work, arguments.out, arguments.tiny)
    if arguments.step != ["all"]:
        step(w, arguments.step)
        return
    import torch

    only = [name for name in arguments.only.split(",") if name]
    gpus = arguments.gpus or max(torch.cuda.device_count(), 1)
    run_all(w, arguments.seconds, gpus, inline=False, large=not arguments.students, only=only, most=arguments.most)


if __name__ == "__main__":
    main()
