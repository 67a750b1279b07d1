"""From settings to an application: models, collections, and the folder of a distillation."""

import time

import pytest
from starlette.testclient import TestClient

from inranker.collection import write_documents
from inranker.errors import InputError
from inranker.generate import write_synthetic
from inranker.recipe import CollectionSettings, Recipe, TeacherSettings
from inranker.serve.setup import ServerSettings, load_application, shown_name, student_of
from inranker.store import write_json
from inranker.types import Document, SyntheticQuery

DOCUMENTS = [Document("a", "kaban lodel", "First"), Document("b", "lodel mifir"), Document("c", "nugol pehus")]


@pytest.fixture
def run(tiny_encoder, tmp_path):
    """A distillation's folder, as far as the server reads it."""
    folder = tmp_path / "mine"
    recipe = Recipe(
        name="mine",
        collection=CollectionSettings(source="gone.jsonl"),
        teacher=TeacherSettings(model=str(tiny_encoder), max_length=128),
    )
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))
    write_documents(folder / "collection" / "documents.parquet", DOCUMENTS)
    queries = [SyntheticQuery("q1", "which lodel", "a", -1.0, "inpars", "m")]
    write_synthetic(folder / "generate" / "kept.parquet", queries)
    (folder / "train").mkdir()
    (folder / "train" / "student").symlink_to(tiny_encoder, target_is_directory=True)
    return folder


def served(**settings):
    return TestClient(load_application(ServerSettings(**settings)), base_url="http://localhost")


def test_a_run_brings_student_documents_and_teacher(run):
    with served(run=run) as server:
        about = server.get("/collection").json()
        assert about["documents"] == 3
        assert about["student"] == "mine"
        assert about["teacher"] is not None
        assert about["examples"] == ["which lodel"]
        found = server.post("/search", json={"query": "lodel", "teacher": True}).json()
        assert {d["id"] for d in found["documents"]} == {"a", "b"}
        for document in found["documents"]:  # student and teacher are one model here
            assert document["ranks"]["student"] == document["ranks"]["teacher"]
        info = server.get("/info").json()
        assert (info["model_id"], info["backend"], info["architecture"]) == ("mine", "torch", "encoder")
        assert str(run) not in str(info) + str(about)
    with served(run=run, teacher=False) as server:
        assert server.get("/collection").json()["teacher"] is None


def test_a_run_without_a_student_is_named(tmp_path):
    with pytest.raises(InputError, match="no student here"):
        student_of(tmp_path)


def test_a_collection_of_ones_own(tiny_encoder, tmp_path):
    (tmp_path / "notes.jsonl").write_text('{"_id": "1", "text": "kaban lodel"}\n')
    with served(model=str(tiny_encoder), collection=str(tmp_path / "notes.jsonl")) as server:
        assert server.get("/collection").json()["name"] == "notes"
        assert len(server.post("/search", json={"query": "lodel"}).json()["documents"]) == 1


def test_the_default_collection_is_read_while_the_server_ranks(tiny_encoder, monkeypatch):
    from inranker.collection import pythondocs

    def slow():
        time.sleep(0.5)
        return DOCUMENTS

    monkeypatch.setattr(pythondocs, "read_pythondocs", slow)
    with served(model=str(tiny_encoder)) as server:
        early = server.get("/collection")
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert "still being read" in early.json()["detail"]
        assert server.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 200
        deadline = time.monotonic() + 20
        while server.get("/collection").status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.get("/collection").json()["documents"] == 3


def test_a_default_collection_that_fails_leaves_ranking_alone(tiny_encoder, monkeypatch):
    from inranker.collection import pythondocs

    def broken():
        raise InputError("/some/path: unreadable")

    monkeypatch.setattr(pythondocs, "read_pythondocs", broken)
    with served(model=str(tiny_encoder)) as server:
        deadline = time.monotonic() + 20
        while "could not be read" not in (detail := server.get("/collection").json()["detail"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "/some/path" not in detail
        assert server.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 200


def test_models_are_shown_without_their_path(tmp_path):
    assert shown_name("inranker-mini") == "inranker-mini"
    assert shown_name("organisation/model-1.5b") == "organisation/model-1.5b"
    assert shown_name("ir_datasets:beir/scifact/test") == "ir_datasets:beir/scifact/test"
    assert shown_name("data/notes.jsonl") == shown_name("/nowhere/notes") == "notes"
    (tmp_path / "student").mkdir()
    assert shown_name(str(tmp_path / "student")) == "student"
