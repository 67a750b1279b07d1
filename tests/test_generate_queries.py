"""The generate stage: plan, shards, resume, reproducibility."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from inranker.errors import InputError, ModelError
from inranker.generate import generate_queries, read_synthetic, write_synthetic
from inranker.generate.queries import plan
from inranker.recipe import GenerateSettings
from inranker.store import Manifest, file_fingerprint
from inranker.types import Document

DOCUMENTS = [Document(f"d{i}", f"kaban lodel {'mifir ' * (i % 5)} number {i}", f"title {i}") for i in range(24)]


@pytest.fixture
def settings(tiny_causal, tmp_path):
    # The tiny model spells its prompts letter by letter, so they have to be short.
    prompts = []
    for name in ("question", "keywords"):
        path = tmp_path / f"{name}.toml"
        path.write_text(f'example = "{name}: {{document}}\\nis: {{query}}"\n')
        prompts.append(str(path))
    return GenerateSettings(model=str(tiny_causal), prompts=prompts, max_new_tokens=8, document_tokens=48, shard_size=5)


def test_same_recipe_and_seed_give_the_same_queries(settings, tmp_path):
    drawn = settings.model_copy(update={"temperature": 1.0, "documents": 8})
    first = generate_queries(DOCUMENTS, drawn, tmp_path / "a", 5)
    second = generate_queries(DOCUMENTS, drawn, tmp_path / "b", 5)
    assert first.read_bytes() == second.read_bytes()
    other = generate_queries(DOCUMENTS, drawn, tmp_path / "c", 6)
    assert [q.text for q in read_synthetic(other)] != [q.text for q in read_synthetic(first)]


def test_a_query_does_not_depend_on_its_shard(settings, tmp_path):
    # In bf16, which `auto` takes where the CPU has matrix units, logits round differently with a batch's shape.
    drawn = settings.model_copy(update={"temperature": 1.0, "dtype": "float32"})
    small = {q.id: q for q in read_synthetic(generate_queries(DOCUMENTS, drawn, tmp_path / "a", 5))}
    large = drawn.model_copy(update={"shard_size": 100, "batch_tokens": 200})
    for query in read_synthetic(generate_queries(DOCUMENTS[::-1], large, tmp_path / "b", 5)):
        assert query.text == small[query.id].text
        assert query.log_probability == pytest.approx(small[query.id].log_probability, abs=1e-4)


def test_what_a_row_says(settings, tmp_path):
    rows = []
    path = generate_queries(DOCUMENTS, settings, tmp_path, 0, rows.append)
    queries = read_synthetic(path)
    known = {d.id for d in DOCUMENTS}
    assert 0 < len(queries) <= len(DOCUMENTS) == sum(rows)
    assert {q.document_id for q in queries} <= known
    assert len({q.id for q in queries}) == len(queries)
    assert {q.prompt for q in queries} == {"question", "keywords"}
    assert all(q.log_probability < 0 and q.text == q.text.strip() and "\n" not in q.text for q in queries)
    manifest = Manifest.read(tmp_path / "manifest.json")
    assert manifest.counts == {"items": 24, "rows": len(queries)}
    assert manifest.seed == 0
    assert set(manifest.inputs) == {"model", "prompts", "documents"}
    write_synthetic(tmp_path / "again.parquet", queries)
    assert read_synthetic(tmp_path / "again.parquet") == queries


def test_prompts_take_turns_and_draws_are_nested():
    settings = GenerateSettings(prompts=["inpars"] * 3, queries_per_document=3)
    tasks = plan(DOCUMENTS, settings, 3, 1)
    for document in DOCUMENTS:
        assert sorted(t.prompt for t in tasks if t.document_id == document.id) == [0, 1, 2]
    many = [Document(str(i), "some text") for i in range(3000)]
    single = plan(many, GenerateSettings(prompts=["inpars"] * 3), 3, 1)
    assert all(900 < sum(t.prompt == p for t in single) < 1100 for p in range(3))
    assert [t.prompt for t in single] == sorted(t.prompt for t in single)
    large, small = ({t.document_id for t in plan(many, GenerateSettings(documents=n), 1, 1)} for n in (500, 100))
    assert len(large) == 500 and len(small) == 100 and small < large
    assert small != {t.document_id for t in plan(many, GenerateSettings(documents=100), 1, 2)}


def test_documents_without_text_are_left_out():
    tasks = plan([Document("a", "  "), Document("b", "\n", "title\nof b")], GenerateSettings(), 1, 0)
    assert [(t.document_id, t.request.document) for t in tasks] == [("b", "title of b")]


def test_mistakes_are_named(settings, tmp_path):
    with pytest.raises(InputError, match="temperature 0"):
        generate_queries(DOCUMENTS, settings.model_copy(update={"queries_per_document": 3}), tmp_path, 0)
    with pytest.raises(InputError, match="no document has any text"):
        generate_queries([Document("a", " ")], settings, tmp_path, 0)
    with pytest.raises(InputError, match="unknown prompt 'inpar'; did you mean 'inpars'"):
        generate_queries(DOCUMENTS, settings.model_copy(update={"prompts": ["inpar"]}), tmp_path, 0)
    with pytest.raises(InputError, match="unknown dtype 'bf16'"):
        generate_queries(DOCUMENTS, settings.model_copy(update={"dtype": "bf16"}), tmp_path, 0)
    with pytest.raises(ModelError, match="no room for a document"):
        generate_queries(DOCUMENTS, settings.model_copy(update={"max_new_tokens": 2000}), tmp_path, 0)


def test_a_damaged_shard_is_made_again(settings, tmp_path):
    calls = []

    def stop_after_three(done):
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    whole = generate_queries(DOCUMENTS, settings, tmp_path / "whole", 0)
    with pytest.raises(KeyboardInterrupt):
        generate_queries(DOCUMENTS, settings, tmp_path / "cut", 0, stop_after_three)
    shards = sorted((tmp_path / "cut").rglob("0*.parquet"))
    assert len(shards) == 3
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    again = generate_queries(DOCUMENTS, settings, tmp_path / "cut", 0)
    assert file_fingerprint(again) == file_fingerprint(whole)


def test_killed_and_started_again_gives_the_same(settings, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time, torch
        from pathlib import Path
        from inranker.generate import generate_queries
        from inranker.recipe import GenerateSettings
        from inranker.types import Document
        torch.set_num_threads(1)
        documents = [Document(*d) for d in {[(d.id, d.text, d.title) for d in DOCUMENTS]!r}]
        settings = GenerateSettings.model_validate_json({settings.model_dump_json()!r})
        pause = float(sys.argv[2])
        def told(done):
            print(done, flush=True)
            time.sleep(pause)
        generate_queries(documents, settings, Path(sys.argv[1]), 0, told)
        """)
    )
    whole = generate_queries(DOCUMENTS, settings, tmp_path / "whole", 0)
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, "30"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "5\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "queries.parquet").exists()
    kept = next((tmp_path / "killed").rglob("00000.parquet"))
    before = kept.stat().st_mtime_ns
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        # The first shard is there at once: its time of change stays what it was.
        assert process.stdout.readline() == "5\n"
        assert not kept.exists() or kept.stat().st_mtime_ns == before
        assert process.wait() == 0
    assert file_fingerprint(Path(tmp_path / "killed" / "queries.parquet")) == file_fingerprint(whole)
