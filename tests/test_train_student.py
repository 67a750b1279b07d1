"""Training of an encoder student, end to end on tiny models."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from conftest import WORDS
from inranker.errors import InputError
from inranker.recipe import PhaseSettings, StudentSettings, TrainSettings
from inranker.sequence import ModelSettings
from inranker.store import read_json
from inranker.train import TrainingQuery, train_student
from inranker.train.agreement import kendall_tau
from inranker.train.calibration import fit_affine
from inranker.train.data import BatchPlan, TokenizedQueries
from inranker.train.guide import Guide
from inranker.train.students import load_student
from inranker.train.trainer import score_queries


def made_queries(count: int, seed: int, candidates: int = 6) -> list[TrainingQuery]:
    """The teacher likes documents that hold the query's word early and often."""
    rng = np.random.default_rng(seed)
    queries = []
    for number in range(count):
        word = str(rng.choice(WORDS))
        documents, margins = [], []
        for rank in range(candidates):
            body = [str(w) for w in rng.choice(WORDS, size=int(rng.integers(3, 12))) if w != word]
            hits = int(rng.integers(0, 4))
            documents.append(" ".join([word] * hits + body))
            margins.append(2.0 * hits - 3 + 0.01 * rank)
        margins = np.array(margins, dtype=np.float32)
        queries.append(
            TrainingQuery(f"q{number}", word, documents, (margins == margins.max()).astype(np.int64), margins)
        )
    return queries


def settings(**changes) -> TrainSettings:
    phase = {
        "data": "supervised",
        "loss": {"margin_mse": 1.0},
        "learning_rate": 5e-3,
        "epochs": 6,
        "evaluations": 3,
        "queries_per_batch": 8,
    }
    phases = [PhaseSettings(**{**phase, **changes}), PhaseSettings(**{**phase, **changes, "data": "synthetic"})]
    return TrainSettings(held_out=0.2, batch_tokens=2048, phases=phases)


DATA = {"supervised": made_queries(100, 1), "synthetic": made_queries(100, 2)}


@pytest.fixture(scope="module")
def trained(tiny_encoder, tmp_path_factory):
    student = StudentSettings(start=str(tiny_encoder), layers=[0, 3], max_length=64)
    folder = tmp_path_factory.mktemp("train")
    return train_student(student, settings(), DATA, folder, seed=7)


def test_training_raises_agreement_with_the_teacher(trained):
    assert trained.phases[0].agreement_after > trained.phases[0].agreement_before + 0.2
    assert any("eval_agreement" in entry for entry in trained.phases[0].history)


def test_the_student_is_cut_and_calibrated(trained):
    student = load_student(trained.student)
    assert student.model.config.num_hidden_layers == 2
    kept = ModelSettings.read(trained.student)
    assert kept.max_length == 64
    assert kept.calibration is not None and kept.calibration[0] > 0


def test_sentence_transformers_opens_the_folder_and_gives_the_same_scores(trained):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="a peer, in the test dependencies only")
    queries = DATA["synthetic"][:4]
    student = load_student(trained.student)
    ours = score_queries(student.module, TokenizedQueries(queries, student.sequences, student.pad_id, 2048))
    theirs = sentence_transformers.CrossEncoder(str(trained.student), max_length=64, device="cpu")
    for query, scores in zip(queries, ours, strict=True):
        import torch

        expected = theirs.predict([(query.text, d) for d in query.documents], activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_second_call_finds_everything_done(trained, tiny_encoder, monkeypatch):
    import inranker.train.stage as stage

    monkeypatch.setattr(stage, "train_phase", lambda *a, **k: pytest.fail("trained again"))
    student = StudentSettings(start=str(tiny_encoder), layers=[0, 3], max_length=64)
    again = train_student(student, settings(), DATA, trained.student.parent, seed=7)
    assert again.phases[1].agreement_after == trained.phases[1].agreement_after


def test_a_run_resumed_at_a_checkpoint_ends_like_an_uninterrupted_one(trained, tiny_encoder, tmp_path, monkeypatch):
    import inranker.train.stage as stage

    student = StudentSettings(start=str(tiny_encoder), layers=[0, 3], max_length=64)
    real, calls = stage.train_phase, []

    def killed(*args, progress, **kwargs):
        def advance(done, seen=[0]):  # noqa: B006
            seen[0] += done
            if len(calls) == 0 and seen[0] == 30:  # past the first checkpoint of phase 1, before the second
                calls.append("killed")
                raise KeyboardInterrupt

        return real(*args, progress=advance, **kwargs)

    monkeypatch.setattr(stage, "train_phase", killed)
    with pytest.raises(KeyboardInterrupt):
        train_student(student, settings(), DATA, tmp_path / "run", seed=7)
    result = train_student(student, settings(), DATA, tmp_path / "run", seed=7)
    ours, whole = load_student(result.student), load_student(trained.student)
    queries = DATA["synthetic"][:5]
    left = score_queries(ours.module, TokenizedQueries(queries, ours.sequences, ours.pad_id, 2048))
    right = score_queries(whole.module, TokenizedQueries(queries, whole.sequences, whole.pad_id, 2048))
    np.testing.assert_allclose(np.concatenate(left), np.concatenate(right), atol=1e-4)


def test_a_phase_that_makes_it_worse_is_dropped(tiny_encoder, tmp_path, monkeypatch):
    import inranker.train.stage as stage

    def ruin(module, *args, **kwargs):
        for parameter in module.parameters():
            parameter.data.zero_()
        return []

    real = stage.train_phase
    monkeypatch.setattr(
        stage, "train_phase", lambda s, *a, **k: (real if a[2].data == "supervised" else ruin)(s, *a, **k)
    )
    result = train_student(StudentSettings(start=str(tiny_encoder)), settings(), DATA, tmp_path, seed=0)
    assert [phase.kept for phase in result.phases] == [True, False]
    assert result.phases[1].student == tmp_path / "phase-1"


def test_soft_losses_refuse_hard_labels(tiny_encoder, tmp_path):
    hard = {name: [TrainingQuery(q.id, q.text, q.documents, q.grades) for q in data] for name, data in DATA.items()}
    with pytest.raises(InputError, match="soft labels"):
        train_student(StudentSettings(start=str(tiny_encoder)), settings(), hard, tmp_path, seed=0)


def test_layers_out_of_range_are_named(tiny_encoder, tmp_path):
    with pytest.raises(InputError, match="from 0 to 3"):
        train_student(StudentSettings(start=str(tiny_encoder), layers=[0, 9]), settings(), DATA, tmp_path, seed=0)


def test_the_plan_of_batches_covers_each_query_once_an_epoch(tiny_encoder):
    student = load_student(tiny_encoder)
    plan = BatchPlan(TokenizedQueries(DATA["supervised"], student.sequences, 0, 512), 7, epochs=2, seed=3)
    sizes = [int(plan[i].group[-1]) + 1 for i in range(len(plan))]
    assert sum(sizes[: len(sizes) // 2]) == sum(sizes[len(sizes) // 2 :]) == 100
    for chunk in plan[0].chunks:
        assert chunk.input_ids.size <= 512
    assert sorted(np.concatenate([c.place for c in plan[0].chunks]).tolist()) == list(range(len(plan[0].group)))


def test_batches_do_not_move_a_score(tiny_encoder):
    student = load_student(tiny_encoder)
    queries = DATA["supervised"][:8]
    together = score_queries(student.module, TokenizedQueries(queries, student.sequences, 0, 4096), 8)
    alone = score_queries(student.module, TokenizedQueries(queries, student.sequences, 0, 1), 1)
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-4)


def test_kendall_tau_counts_pairs():
    assert kendall_tau(np.array([3.0, 2, 1]), np.array([30.0, 20, 10])) == 1
    assert kendall_tau(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1
    assert kendall_tau(np.array([1.0, 1, 1]), np.array([3.0, 2, 1])) == 0


def test_the_affine_recovers_what_made_the_targets():
    x = np.linspace(-8, 8, 400)
    a, b = fit_affine(x, 1 / (1 + np.exp(-(0.5 * x - 1.5))))
    assert a == pytest.approx(0.5, abs=0.01) and b == pytest.approx(-1.5, abs=0.05)


def test_the_affine_never_turns_a_ranking_around():
    a, _ = fit_affine(np.array([1.0, 2, 3, 4]), np.array([0.9, 0.6, 0.3, 0.1]))
    assert a > 0


def test_the_start_is_not_changed(tiny_encoder, tmp_path):
    copy = tmp_path / "start"
    shutil.copytree(tiny_encoder, copy)
    before = (copy / "config.json").read_bytes()
    train_student(StudentSettings(start=str(copy), layers=[1]), settings(epochs=0.2), DATA, tmp_path / "out", seed=0)
    assert (copy / "config.json").read_bytes() == before and isinstance(copy, Path)


def test_a_cut_student_that_follows_its_start_comes_nearer_to_it(trained, tiny_encoder, tmp_path):
    """After as many steps, on the same pairs: the states say more than the margins alone."""
    whole = load_student(trained.student)
    data = {"supervised": []}
    for query, margins in zip(
        DATA["supervised"],
        score_queries(whole.module, TokenizedQueries(DATA["supervised"], whole.sequences, whole.pad_id, 2048)),
        strict=True,
    ):
        data["supervised"].append(replace(query, margins=margins))
    agreements = {}
    for states in (0.0, 4.0):
        phase = PhaseSettings(
            data="supervised", loss="margin_mse", states=states, learning_rate=3e-3, epochs=3, queries_per_batch=8
        )
        result = train_student(
            StudentSettings(start=str(trained.student), layers=[1], max_length=64, dropout=0.0),
            TrainSettings(held_out=0.2, batch_tokens=2048, phases=[phase]),
            data,
            tmp_path / str(states),
            seed=7,
        )
        agreements[states] = result.phases[0].agreement_after
    assert agreements[4.0] > agreements[0.0]
    assert read_json(tmp_path / "4.0" / "student" / "config.json")["hidden_dropout_prob"] == 0


def test_the_guide_is_at_no_distance_from_itself(tiny_encoder):
    student = load_student(tiny_encoder, max_length=64)
    batch = TokenizedQueries(DATA["supervised"][:3], student.sequences, student.pad_id, 2048).batch(range(3))
    chunk = {k: torch.from_numpy(v) for k, v in batch.chunks[0]._asdict().items() if k != "place"}
    student.module.eval()
    guide = Guide(load_student(tiny_encoder, max_length=64), range(student.model.config.num_hidden_layers))
    margins, distance = guide.follow(student.module, chunk)
    assert float(distance) < 1e-6
    assert torch.allclose(margins, student.module(**chunk), atol=1e-6)


def test_the_last_layer_computes_only_what_the_head_reads(tiny_encoder):
    student = load_student(tiny_encoder, max_length=64)
    batch = TokenizedQueries(DATA["supervised"][:3], student.sequences, student.pad_id, 2048).batch(range(3))
    chunk = {k: torch.from_numpy(v) for k, v in batch.chunks[0]._asdict().items() if k != "place"}
    whole = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=1).eval()
    student.module.eval()
    expected = whole(**chunk).logits[:, 0]
    found, states = student.module.states(**chunk)
    assert states[-1].shape[1] == 1
    assert torch.allclose(found, expected, atol=1e-5)
    for logits, model in ((expected, whole), (found, student.model)):
        logits.sum().backward()
        assert model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    gradients = [m.bert.encoder.layer[0].output.dense.weight.grad for m in (whole, student.model)]
    assert torch.allclose(*gradients, atol=1e-4)
