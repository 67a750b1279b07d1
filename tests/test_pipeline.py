"""A whole run on tiny random models: every stage, in one process."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from inranker.errors import InputError, InRankerError
from inranker.pipeline import STAGES, distill
from inranker.recipe import load_recipe, parse_recipe, shipped_recipes
from inranker.store import read_json, read_parquet


def tiny_recipe(collection, writer, encoder, store, **changes):
    """A recipe that runs every stage within seconds."""
    values = {
        "name": "tiny",
        "seed": 3,
        "collection": {"source": str(collection)},
        "supervised": {"split": "train", "negatives": {"count": 5, "depth": 30}},
        "generate": {
            "model": str(writer),
            "temperature": 1.0,
            "max_new_tokens": 8,
            "shard_size": 16,
            "filters": {"copied_span": None},
        },
        "negatives": {"count": 5, "hard": 2, "depth": 30},
        "teacher": {"model": str(encoder), "max_length": 64},
        "label": {"store": str(store), "shard_size": 64},
        "student": {"start": str(encoder), "layers": [0, 2], "max_length": 64},
        "train": {
            "phases": [
                {"data": "supervised", "loss": "mse", "epochs": 2, "queries_per_batch": 8, "learning_rate": 1e-3},
                {"data": "synthetic", "loss": "margin_mse", "epochs": 2, "queries_per_batch": 8, "learning_rate": 1e-3},
            ]
        },
        "evaluate": {"depth": 20, "samples": 200},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_recipe({key: value for key, value in values.items() if value is not None})


@pytest.fixture(scope="module", autouse=True)
def no_long_timing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inranker.pipeline.measure.SPEED_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_collection, tiny_writer, tiny_encoder):
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(tiny_collection, tiny_writer, tiny_encoder, folder / "labels")
    return recipe, folder / "run", distill(recipe, folder / "run")


def test_every_stage_runs_and_leaves_a_manifest(finished):
    recipe, folder, results = finished
    assert [r.stage for r in results] == [name for name, stage in STAGES.items() if stage.wanted(recipe)]
    assert not any(r.reused for r in results)
    for result in results:
        record = read_json(folder / result.stage / "stage.json")
        assert record["files"] and record["key"] and record["versions"]["inranker"]


def test_a_second_run_does_nothing(finished):
    recipe, folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "recipe.json"}
    assert all(r.reused for r in distill(recipe, folder))
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "recipe.json"}
    assert after == before


def test_candidates_begin_with_what_is_relevant_and_labels_cover_them(finished):
    _, folder, _ = finished
    queries = read_parquet(folder / "generate" / "kept.parquet").to_pylist()
    source = {row["id"]: row["document_id"] for row in queries}
    candidates: dict[str, list[str]] = {}
    for row in read_parquet(folder / "retrieve" / "synthetic" / "candidates.parquet").to_pylist():
        candidates.setdefault(row["query_id"], []).append(row["document_id"])
    assert len(source) > 30
    assert {q: found[0] for q, found in candidates.items()} == {q: source[q] for q in candidates}
    labels = read_parquet(folder / "label" / "synthetic" / "labels.parquet").to_pylist()
    assert {(r["query_id"], r["document_id"]) for r in labels} == {(q, d) for q, ds in candidates.items() for d in ds}


def test_metrics_and_report_say_where_figures_come_from(finished):
    _, folder, _ = finished
    metrics = read_json(folder / "evaluate" / "metrics.json")
    names = [system["name"] for system in metrics["systems"]]
    assert names[:3] == ["BM25", "student, undistilled", "student, after phase 1"]
    assert names[-2:] == ["teacher", "student and BM25"] and len(names) == 6
    (collection,) = metrics["collections"]
    assert collection["judged"] and collection["queries"] == 12
    for figures in collection["figures"].values():
        assert figures["nDCG@10"]["low"] <= figures["nDCG@10"]["mean"] <= figures["nDCG@10"]["high"]
    assert collection["agreement"]["student, undistilled"]["tau"] < 1
    assert {stage["stage"] for stage in metrics["stages"]} >= {"collection", "generate", "retrieve", "label", "train"}
    report = (folder / "evaluate" / "report.html").read_text()
    assert metrics["verdict"]["headline"] in report
    assert "<script" not in report and not re.search(r"(src|href)=\"(?!data:)", report)


def test_measured_runs_are_those_of_the_student(finished):
    """The figures come from the runs on disk, and those from the student that is exported."""
    from inranker.evaluate import evaluate_run, means
    from inranker.retrieve import read_qrels, read_run

    _recipe, folder, _ = finished
    metrics = read_json(folder / "evaluate" / "metrics.json")
    run = read_run(next((folder / "evaluate" / "runs").rglob("teacher.trec")))
    mean = means(evaluate_run(run, read_qrels(folder / "collection" / "qrels.trec"), ["nDCG@10"]))["nDCG@10"]
    assert mean == pytest.approx(metrics["collections"][0]["figures"]["teacher"]["nDCG@10"]["mean"])
    from inranker.rank.reranker import Reranker

    pairs = [("kaban lodel", "kaban lodel mifir"), ("kaban lodel", "tojam")]
    torch_scores = Reranker.load(folder / "train" / "student", backend="torch").scores(pairs)
    onnx_scores = Reranker.load(folder / "export", backend="onnx", precision="fp32").scores(pairs)
    np.testing.assert_allclose(onnx_scores, torch_scores, atol=1e-3)


def test_a_changed_setting_redoes_what_depends_on_it_and_nothing_else(finished, tmp_path):
    import shutil

    recipe, folder, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    changed = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"depth": 10})})
    assert {r.stage for r in distill(changed, copy) if not r.reused} == {"evaluate"}
    (copy / "label" / "synthetic" / "labels.parquet").write_bytes(b"damaged")
    assert [r.stage for r in distill(changed, copy, last="label") if not r.reused] == ["label"]
    assert (copy / "label" / "synthetic" / "labels.parquet").read_bytes() == (
        folder / "label" / "synthetic" / "labels.parquet"
    ).read_bytes()


def test_a_stage_alone_wants_those_before_it(finished, tmp_path):
    recipe, folder, _ = finished
    with pytest.raises(InputError, match=r"stage 'collection' has not run"):
        distill(recipe, tmp_path / "empty", first="label", last="label")
    assert [r.stage for r in distill(recipe, folder, first="label", last="label")] == ["label"]
    with pytest.raises(InputError, match="did you mean 'retrieve'"):
        distill(recipe, folder, last="retreive")
    with pytest.raises(InputError, match="comes after"):
        distill(recipe, folder, first="train", last="label")


def test_without_judgements_held_out_documents_are_measured(tmp_path, tiny_collection, tiny_writer, tiny_encoder):
    """Documents alone: phase 2 alone, and a verdict from queries of documents that training never saw."""
    corpus = tmp_path / "documents.jsonl"
    corpus.write_text((tiny_collection / "corpus.jsonl").read_text())
    recipe = tiny_recipe(
        corpus, tiny_writer, tiny_encoder, tmp_path / "labels",
        supervised=None, train={"phases": [{"data": "synthetic", "loss": "kl", "queries_per_batch": 8}]},
        evaluate={"held_out_documents": 0.3},
    )  # fmt: skip
    folder = tmp_path / "run"
    distill(recipe, folder, last="evaluate")
    metrics = read_json(folder / "evaluate" / "metrics.json")
    (collection,) = metrics["collections"]
    assert not collection["judged"] and collection["metric"] == "RR@10" and collection["sample"]
    assert metrics["verdict"]["use"] in ("student", "bm25", "undecided") and len(metrics["verdict"]["reasons"]) >= 3
    kept = {row["id"]: row["document_id"] for row in read_parquet(folder / "generate" / "kept.parquet").to_pylist()}
    labelled = set(read_parquet(folder / "label" / "synthetic" / "labels.parquet")["query_id"].to_pylist())
    held_out = kept.keys() - labelled
    assert collection["queries"] == len(held_out) > 3
    assert not {kept[q] for q in held_out} & {kept[q] for q in labelled}


def test_hard_labels_need_no_teacher(tmp_path, tiny_collection, tiny_writer, tiny_encoder):
    phase = {"data": "both", "labels": "hard", "loss": "bce", "queries_per_batch": 8}
    recipe = tiny_recipe(tiny_collection, tiny_writer, tiny_encoder, tmp_path / "labels", train={"phases": [phase]})
    results = distill(recipe, tmp_path / "run", last="train")
    assert next(r for r in results if r.stage == "label").counts == {}
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher.model": "/no/such/teacher"}, "/no/such/teacher"),
        ({"teacher.dtype": "int8"}, "no int8 file"),
        ({"student.start": "/no/such/student"}, "/no/such/student"),
        ({"retrieve.run": "/no/such.run"}, "/no/such.run"),
    ],
)
def test_what_is_missing_shows_before_the_first_stage(
    changes, said, tmp_path, tiny_collection, tiny_writer, tiny_encoder
):
    recipe = tiny_recipe(tiny_collection, tiny_writer, tiny_encoder, tmp_path / "labels")
    settings = recipe.model_dump(mode="json")
    for key, value in changes.items():
        room, field = key.split(".")
        settings[room][field] = value
    with pytest.raises(InRankerError, match=said):
        distill(parse_recipe(settings, "test"), tmp_path / "run")
    assert not (tmp_path / "run" / "collection").exists()


def test_dry_run_reads_documents_and_does_nothing(tmp_path, tiny_collection, tiny_writer, tiny_encoder):
    from inranker.pipeline.plan import estimate
    from inranker.pipeline.workspace import Workspace

    recipe = tiny_recipe(
        tiny_collection, tiny_writer, tiny_encoder, tmp_path / "labels",
        generate={"backend": "openai", "api": {"price_input": 1.0, "price_output": 10.0, "requests_per_minute": 64}},
    )  # fmt: skip
    found = {entry.stage: entry for entry in estimate(Workspace(recipe, tmp_path / "run"))}
    assert not (tmp_path / "run").exists()
    assert found["collection"].items == 64 and found["generate"].items == 64
    assert found["generate"].seconds == pytest.approx(60)
    assert found["label"].items == (24 + 64) * 6
    assert found["train"].items == (24 + 64) * 6 * 2
    assert found["generate"].cost > 0 and found["label"].seconds > 0


def test_parameters_that_tokens_are_multiplied_by():
    from inranker.models import resolve
    from inranker.pipeline.measure import count_parameters

    folder, tables = resolve("inranker-mini"), 30522 * 384 + 512 * 384 + 2 * 384 + 2 * 384  # and a norm
    assert count_parameters(folder) - count_parameters(folder, multiplied=True) == tables


def test_settings_on_the_command_line():
    from inranker.cli.distill import parse_settings
    from inranker.recipe import load_recipe

    given = parse_settings(["seed=4", "name=other", "train.phases.0.epochs=3"])
    assert given == {"seed": 4, "name": "other", "train.phases.0.epochs": 3}
    recipe = load_recipe("quickstart", given)
    assert (recipe.seed, recipe.name, recipe.train.phases[0].epochs) == (4, "other", 3)
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        parse_settings(["seed"])
    with pytest.raises(InputError, match="did you mean 'generate'"):
        load_recipe("quickstart", {"genrate.model": "x"})
    with pytest.raises(InputError, match=r"train\.phases\.9"):
        load_recipe("quickstart", {"train.phases.9.epochs": 3})
    with pytest.raises(InputError, match="int8 is for cross-encoder and seq2seq"):
        load_recipe("quickstart", {"teacher.kind": "causal"})


def test_a_teacher_of_the_runs_own_is_no_int8_file(tmp_path):
    from inranker.pipeline.workspace import Workspace

    recipe = load_recipe("quickstart", {"train_teacher": {"model": "own"}})
    settings = Workspace(recipe, tmp_path).teacher_settings
    assert recipe.teacher.by_int8_file and (settings.kind, settings.dtype) == ("causal", "auto")


def test_metrics_are_json(finished):
    _, folder, _ = finished
    json.loads((folder / "evaluate" / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipes_that_ship_run_all_stages_at_tiny_size(
    name, tmp_path, tiny_collection, tiny_writer, tiny_encoder, tiny_t5, tiny_causal
):
    """The same tables with random models and little data: every choice in a shipped recipe is one that works."""
    shipped = load_recipe(name)
    small = {"count": 5, "depth": 30}
    start = {"t5": tiny_t5("v1.0"), "encoder": tiny_encoder}[shipped.student.kind]
    encoder = shipped.teacher.model if shipped.teacher.by_int8_file else tiny_encoder  # the tiny one has no such file
    teachers = {"seq2seq": tiny_t5("v1.1"), "cross-encoder": encoder, "causal": tiny_causal}
    teacher = (teachers | {"bi-encoder": tiny_encoder})[shipped.teacher.kind]
    changes = {
        "collection.source": str(tiny_collection),
        "supervised.collection": {"source": str(tiny_collection), "split": "train"},
        "supervised.negatives": small,
        "negatives": small,
        "generate.model": str(tiny_writer),
        "generate.temperature": 1.0,
        "generate.max_new_tokens": 8,
        "generate.documents": 40,
        "teacher.model": str(teacher),
        "teacher.max_length": 64,
        "label.store": str(tmp_path / "labels"),
        "student.start": str(start),
        "student.max_length": 64,
        "evaluate.depth": 10,
        "evaluate.samples": 100,
    }
    if shipped.student.layers:
        changes["student.layers"] = [0, 2]
    if shipped.train_teacher is not None:
        changes |= {"train_teacher.model": str(tiny_causal), "train_teacher.negatives": {"count": 3}}
    for number, _ in enumerate(shipped.train.phases):
        changes |= {f"train.phases.{number}.queries_per_batch": 16, f"train.phases.{number}.epochs": 1}
    recipe = load_recipe(name, changes)
    results = distill(recipe, tmp_path / "run")
    assert [r.stage for r in results] == [stage for stage in STAGES if STAGES[stage].wanted(recipe)]
    assert (tmp_path / "run" / "export" / "onnx" / "model.onnx").is_file()
    assert (tmp_path / "run" / "evaluate" / "report.html").is_file()
