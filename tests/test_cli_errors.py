"""What bad input gets: exit code 2 and one line on standard error that says what, where, and what to do."""

from __future__ import annotations

import errno
import json

import pytest

from inranker.cli.app import main


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["inranker", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def recipe(tmp_path, tiny_collection, tiny_writer, tiny_encoder):
    """Write a recipe over a folder of its own; changes are lines of TOML that win over it."""

    def write(source=tiny_collection, more=""):
        path = tmp_path / "recipe.toml"
        path.write_text(
            f"""
            name = "broken"
            {more if not more.startswith("[") else ""}
            [collection]
            source = {json.dumps(str(source))}
            [generate]
            model = {json.dumps(str(tiny_writer))}
            max_new_tokens = 8
            temperature = 1.0
            [teacher]
            model = {json.dumps(str(tiny_encoder))}
            [label]
            store = {json.dumps(str(tmp_path / "labels"))}
            {more if more.startswith("[") else ""}
            """
        )
        return path

    return write


def one_line(error):
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("inranker: "), error
    assert "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"_id": "a", "text": "x"}', '{"_id": "b", "text": '], "corpus.jsonl:2"),
        (['{"_id": "a", "text": "x"}', '{"id": "b", "text": "x"}'], "corpus.jsonl:2"),
        (['{"_id": "a", "text": "x"}', '{"_id": "a", "text": "y"}'], "corpus.jsonl:2: duplicate document id 'a'"),
        (['{"_id": "a", "text": ""}'], "no documents"),
        ([], "no documents"),
    ],
)
def test_damaged_documents(call, recipe, tmp_path, lines, message):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text("")
    code, _, error = call("distill", recipe(folder), "--out", tmp_path / "run")
    assert code == 2 and message in one_line(error)
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_wrong_encoding(call, recipe, tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_bytes(b'{"_id": "a", "text": "fine"}\n{"_id": "b", "text": "caf\xe9"}\n')
    code, _, error = call("distill", recipe(path), "--out", tmp_path / "run")
    assert code == 2 and "documents.jsonl:2" in one_line(error) and "UTF-8" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("sede = 3", "unknown key 'sede'; did you mean 'seed'"),
        ('[student]\nlayer = [0]', "did you mean 'layers'"),
        ("[evaluate]\ndepth = 'deep'", "evaluate.depth"),
        ("[train_teacher]\nmodel = 'x'", "add a table [supervised]"),
        ('[[train.phases]]\ndata = "supervised"', "wants supervised queries"),
        ("[generate", "not TOML"),
    ],
)  # fmt: skip
def test_recipes_are_checked_before_anything_starts(call, recipe, tmp_path, more, message):
    code, _, error = call("distill", recipe(more=more), "--out", tmp_path / "run")
    assert code == 2 and message in one_line(error) and "recipe.toml" in error
    assert not (tmp_path / "run").exists()


def test_no_such_recipe_names_those_that_ship(call):
    code, _, error = call("distill", "quikstart")
    assert code == 2 and "quikstart: no such recipe" in one_line(error) and "quickstart" in error


def test_a_run_over_other_documents(call, recipe, tmp_path):
    run = tmp_path / "first.trec"
    run.write_text("q1 Q0 d1 1 2.0 bm25\nq1 Q0 stranger 2 1.0 bm25\n")
    path = recipe(more=f"[retrieve]\nrun = {json.dumps(str(run))}")
    code, _, error = call("retrieve", path, "--out", tmp_path / "run")
    assert code == 2 and "first.trec:2" in one_line(error.splitlines()[-1]) and "'stranger'" in error


def test_a_model_without_words_for_true_and_false(call, recipe, tmp_path, tiny_encoder):
    path = recipe(more="[train]\nheld_out = 0.2")
    code, _, error = call(
        "label", path, "--out", tmp_path / "run", "--set", "teacher.kind=seq2seq", "--set", "generate.documents=8"
    )
    assert code == 2 and str(tiny_encoder) in one_line(error.splitlines()[-1])
    assert not list((tmp_path / "run" / "label").rglob("*.parquet"))


def test_an_unknown_model_names_the_nearest(call, recipe, tmp_path):
    code, _, error = call("label", recipe(), "--out", tmp_path / "run", "--set", "generate.model=smollm2-135m-instrct")
    assert code == 2 and "did you mean 'smollm2-135m-instruct'" in one_line(error.splitlines()[-1])


def test_a_full_disk(call, recipe, tmp_path, monkeypatch):
    import inranker.store

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = recipe()
    monkeypatch.setattr(inranker.store.os, "fsync", full)
    code, _, error = call("distill", path, "--out", tmp_path / "run")
    assert code == 2 and "the disk is full" in one_line(error)
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file()]


def test_status_tells_how_far_a_run_is(call, recipe, tmp_path):
    assert "no run here" in call("status", tmp_path)[2]
    code, out, error = call("generate", recipe(), "--out", tmp_path / "run", "--set", "generate.documents=8")
    assert code == 0, error
    code, out, _ = call("status", tmp_path / "run")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert code == 0 and lines["generate"].startswith("done in") and lines["label"] == "not yet"
    (tmp_path / "run" / "generate" / "kept.parquet").write_bytes(b"x")
    assert "damaged" in call("status", tmp_path / "run")[1]


def test_init_writes_a_recipe_that_is_valid(call, tiny_collection, tmp_path):
    from inranker.recipe import load_recipe

    out = tmp_path / "mine.toml"
    code, said, _ = call("init", tiny_collection, "--out", out, "--name", 'a "b"')
    assert code == 0 and "64 documents" in said
    assert load_recipe(out).name == 'a "b"' and load_recipe(out).collection.source == str(tiny_collection)
    code, _, error = call("init", tiny_collection, "--out", out)
    assert code == 2 and "is there already" in one_line(error)
    code, _, error = call("init", tmp_path / "absent", "--out", tmp_path / "other.toml")
    assert code == 2 and "no such collection" in one_line(error) and not (tmp_path / "other.toml").exists()


def test_dry_run_prints_counts_and_time(call, recipe, tmp_path):
    code, out, _ = call("distill", recipe(), "--out", tmp_path / "run", "--dry-run")
    assert code == 0 and "64 documents" in out and "M tokens" in out and "on this machine" in out
    assert not (tmp_path / "run").exists()
