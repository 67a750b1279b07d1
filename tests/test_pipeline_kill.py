"""A run that is killed at any moment and started again ends like one that was not, and repeats at most one shard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from inranker.store import write_json
from test_pipeline import tiny_recipe

SCRIPT = Path(__file__).with_name("killable_run.py")
# Two fp32 trainings with the same batches differ by the order of sums alone.
TOLERANCE = 1e-5


def start(recipe, folder, log, slow=""):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    arguments = [str(recipe), str(folder), str(log), *([slow] if slow else [])]
    return subprocess.Popen([sys.executable, str(SCRIPT), *arguments], env=environment, stderr=subprocess.PIPE)


def items(log, stage):
    lines = log.read_text().splitlines() if log.is_file() else []
    return [line.split(" ", 1)[1] for line in lines if line.startswith(f"{stage} ")]


def kill_in(stage, count, recipe, folder, log):
    """Start, wait until `count` items of a stage are noted, and kill."""
    process = start(recipe, folder, log, stage)
    deadline = time.monotonic() + 300
    while len(items(log, stage)) < count:
        if process.poll() is not None:
            pytest.fail(f"ended before it was killed: {process.stderr.read().decode()[-2000:]}")
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_collection, tiny_writer, tiny_encoder):
    """(uninterrupted, interrupted, log of the interrupted one)."""
    folder = tmp_path_factory.mktemp("kill")
    found = []
    for name in ("whole", "killed"):
        recipe = tiny_recipe(tiny_collection, tiny_writer, tiny_encoder, folder / f"{name}-labels")
        write_json(folder / f"{name}.json", recipe.model_dump(mode="json"))
        found.append(folder / name)
    whole = start(folder / "whole.json", folder / "whole", folder / "whole.log")
    log = folder / "killed.log"
    kill_in("generate", 32, folder / "killed.json", folder / "killed", log)
    assert not (folder / "killed" / "generate" / "queries.parquet").exists()
    kill_in("label", 150, folder / "killed.json", folder / "killed", log)
    assert not (folder / "killed" / "label" / "synthetic" / "labels.parquet").exists()
    kill_in("train", 9, folder / "killed.json", folder / "killed", log)
    assert not (folder / "killed" / "train" / "student").exists()
    last = start(folder / "killed.json", folder / "killed", log)
    for process in (last, whole):
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors.decode()[-2000:]
    return folder / "whole", folder / "killed", log


def test_queries_candidates_and_labels_are_identical(runs):
    whole, killed, _ = runs
    for path in (
        "generate/queries.parquet",
        "generate/kept.parquet",
        "retrieve/supervised/candidates.parquet",
        "retrieve/synthetic/candidates.parquet",
        "label/supervised/labels.parquet",
        "label/synthetic/labels.parquet",
    ):
        assert (killed / path).read_bytes() == (whole / path).read_bytes(), path


def test_students_agree(runs):
    from safetensors.torch import load_file

    whole, killed, _ = runs
    expected = load_file(whole / "train" / "student" / "model.safetensors")
    found = load_file(killed / "train" / "student" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < TOLERANCE


def test_at_most_one_shard_is_repeated(runs):
    whole, _, log = runs
    once = whole.with_suffix(".log")
    # Shards: 16 queries, 64 pairs; a training's are the steps between two checkpoints.
    for stage, shard in (("generate", 16), ("label", 64), ("train", 4)):
        repeated = Counter(items(log, stage)) - Counter(items(once, stage))
        assert sum(repeated.values()) <= shard, stage
        assert set(items(log, stage)) == set(items(once, stage)), stage


def test_nothing_temporary_is_left(runs):
    _, killed, _ = runs
    assert not list(killed.rglob("shards")) and not list(killed.rglob("*-checkpoints"))
