"""Parts of the experiments: batches put together on the device, the runner of a plan, what goes home."""

import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch):
    """The experiments are scripts beside each other, not a package."""
    before = set(sys.modules)
    for folder in (EXPERIMENTS, EXPERIMENTS / "second_run"):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name in set(sys.modules) - before:
        if str(EXPERIMENTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_batches_on_the_device_are_the_packages_own_sequences(tiny_encoder: Path):
    import torch
    from on_device import DeviceQueries, score_all

    from inranker.train.data import TokenizedQueries, TrainingQuery
    from inranker.train.students import load_student
    from inranker.train.trainer import score_queries

    student = load_student(tiny_encoder, max_length=24)
    texts = ["the cat sat on the mat " * n for n in (1, 2, 5)] + ["a dog"]
    data = [
        TrainingQuery("1", "where did the cat sit", texts, np.zeros(4, int)),
        TrainingQuery("2", "dog " * 20, texts[1:3], np.zeros(2, int)),
        TrainingQuery("3", "mat", texts[2:], np.zeros(2, int)),
    ]
    queries = DeviceQueries(data, student, torch.device("cpu"), 60)
    expected = [s.input_ids for s in student.sequences.pairs([(q.text, d) for q in data for d in q.documents])]
    assert queries.lengths.tolist() == [len(ids) for ids in expected]
    chunk = queries.chunk(np.arange(8))
    for row, mask, types, ids in zip(
        chunk["input_ids"], chunk["attention_mask"], chunk["token_type_ids"], expected, strict=True
    ):
        assert row[: len(ids)].tolist() == ids
        assert mask.tolist() == [1] * len(ids) + [0] * (len(row) - len(ids))
        assert types[: len(ids)].tolist()[-1] == 1
    assert queries.group(queries.pairs([2, 0])).tolist() == [0, 0, 1, 1, 1, 1]
    slow = score_queries(student.module, TokenizedQueries(data, student.sequences, student.pad_id, 60))
    assert score_all(student.module, queries) == pytest.approx(np.concatenate(slow), abs=1e-5)


def test_a_cut_student_follows_its_start_on_the_device(tiny_encoder: Path):
    import torch
    from on_device import DeviceQueries
    from students import PLANS, fit

    from inranker.train.data import TrainingQuery
    from inranker.train.guide import Guide
    from inranker.train.losses import mix
    from inranker.train.students import OneLogit, keep_layers, load_student

    data = [
        TrainingQuery(str(n), f"cat {n}", ["the cat sat", "a dog ran off"], np.zeros(2, int), np.float32([n, -n]))
        for n in range(8)
    ]
    student = load_student(tiny_encoder, max_length=24)
    keep_layers(student.model, [0, 3])
    module = OneLogit(student.model)
    guide = Guide(load_student(tiny_encoder, max_length=24), [0, 3])
    queries = DeviceQueries(data, student, torch.device("cpu"), 60)
    chunk = queries.chunk(np.arange(16))
    before = float(guide.follow(module, chunk)[1].detach())
    fit(module, queries, mix(PLANS["nano"].loss), [np.arange(8)] * 80, guide, 2.0)
    assert float(guide.follow(module, chunk)[1].detach()) < 0.8 * before


def test_a_student_learns_in_half_precision_copies_of_its_weights(tiny_encoder: Path):
    import torch
    from on_device import DeviceQueries
    from students import fit

    from inranker.train.data import TrainingQuery
    from inranker.train.losses import mix
    from inranker.train.students import load_student

    texts = ["the cat sat", "a dog ran off"]
    data = [TrainingQuery(str(n), f"cat {n}", texts, np.array([1, 0]), np.float32([3, -3])) for n in range(8)]
    losses = {}
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        student = load_student(tiny_encoder, max_length=24)
        queries = DeviceQueries(data, student, torch.device("cpu"), 60)
        losses[dtype] = fit(student.module.eval(), queries, mix({"mse": 1.0}), [np.arange(8)] * 60, dtype=dtype)[
            "losses"
        ]
        assert all(p.dtype == torch.float32 for p in student.module.parameters())
    assert losses[None][-1] < 0.95 * losses[None][0]
    assert losses[torch.bfloat16] == pytest.approx(losses[None], rel=0.1)


class Ended:
    """A process that has ended; without a `path` it left nothing, which is a failure."""

    def __init__(self, path: Path | None = None) -> None:
        if path:
            path.touch()

    def poll(self) -> int:
        return 0


def test_the_runner_keeps_the_order_tries_twice_and_ends(tmp_path: Path):
    from runner import Runner, Step, begin_clock

    begin_clock(tmp_path)
    plan = [
        Step("needs-b", "c", ("b",), "large"),
        Step("late", "never", seconds=1e9),
        Step("makes-b", "b", ("a",), "small"),
        Step("broken", "x", ("a",), "large"),
        Step("behind", "y", ("x",), "small"),
        Step("makes-a", "a", kind="alone"),
    ]
    started: list[str] = []

    def start(name: str, gpu: str, attempt: int) -> Ended:
        started.append(f"{name} {gpu} {attempt}")
        return Ended(None if name == "broken" else tmp_path / name.split("-")[1].replace("needs", "c"))

    def start_and_leave(name: str, gpu: str, attempt: int) -> Ended:
        if name == "needs-b":
            started.append(f"{name} {gpu} {attempt}")
            return Ended(tmp_path / "c")
        return start(name, gpu, attempt)

    Runner(plan, start_and_leave, lambda text: None, tmp_path, ["0", "1"], 1000).run(pause=0)
    assert started[0] == "makes-a 0 0"
    assert set(started[1:3]) == {"makes-b 0 0", "broken 1 0"}
    assert "broken 0 1" in started[3:] or "broken 1 1" in started[3:]
    assert sum(s.startswith("needs-b") for s in started) == 1
    assert not any(s.startswith(("behind", "late")) for s in started)
    assert (tmp_path / "finished").exists()


def test_what_is_finished_goes_home_once_and_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import home

    monkeypatch.setattr(home, "PART", 20_000)
    monkeypatch.setattr(home, "MOST", 70_000)
    out, there = tmp_path / "out", tmp_path / "home"
    (out / "labels").mkdir(parents=True)
    (out / "finished").touch()
    (out / "labels" / "first-00.parquet").write_bytes(b"l" * 30_000)
    (out / "weights-nano-1.tar").write_bytes(b"w" * 60_000)
    (out / "log.txt").write_text("one\n")
    sizes = []
    for poll in range(3):
        place = tmp_path / "arrivals" / str(poll)
        home.send(out, place, 1e9, None)
        sizes.append(sum(p.stat().st_size for p in place.iterdir()))
        assert all(p.stat().st_size <= 20_000 for p in place.iterdir())
        home.collect(tmp_path / "arrivals", there, watch=False)
    assert sizes[2] < sizes[0] < 80_000 and sizes[1] > 60_000  # labels first, then the weights, then nothing
    assert (there / "out" / "weights-nano-1.tar").read_bytes() == b"w" * 60_000
    assert (there / "out" / "labels" / "first-00.parquet").stat().st_size == 30_000
    home.send(out, tmp_path / "again", 0, "home-000")
    assert {p.name.split(".")[0] for p in (tmp_path / "again").iterdir()} == {"home-003"}
    assert sum(p.stat().st_size for p in (tmp_path / "again").iterdir()) > 30_000
