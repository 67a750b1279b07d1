"""Collections in every form in which people have them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inranker.collection import (
    Collection,
    Documents,
    documents,
    read_collection,
    read_documents,
    read_queries,
    write_documents,
    write_queries,
)
from inranker.errors import InputError
from inranker.recipe import CollectionSettings
from inranker.types import Document, Query


def read(source: Path | str, **settings: object) -> Collection:
    return read_collection(CollectionSettings.model_validate({"source": str(source), **settings}))


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "qrels").mkdir(parents=True)
    rows = [("d1", "Boats", "of wood"), ("d2", "", "wind"), ("d3", "", "  "), ("d4", "Only a title", "")]
    corpus = [json.dumps({"_id": i, "title": title, "text": text, "metadata": {}}) for i, title, text in rows]
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n\n", encoding="utf-8")
    queries = [json.dumps({"_id": f"q{i}", "text": f"question {i}"}) for i in (1, 2, 3)]
    (folder / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\nq1\td2\t2\nq1\td3\t0\n")
    (folder / "qrels" / "train.tsv").write_text("q3 0 d1 1\n")
    return folder


def test_a_beir_folder(beir: Path) -> None:
    made = read(beir)
    assert list(made.documents) == [
        Document("d1", "of wood", "Boats"),
        Document("d2", "wind"),
        Document("d4", "", "Only a title"),
    ]
    assert made.queries == [Query("q1", "question 1"), Query("q2", "question 2")]
    assert made.qrels == {"q2": {"d1": 1}, "q1": {"d2": 2, "d3": 0}}
    assert (made.name, made.skipped) == ("made", 1)
    assert "1 document" in made.notes[0]
    assert made.contents["d1"] == "Boats of wood"


def test_splits_and_their_own_queries(beir: Path) -> None:
    assert [q.id for q in read(beir, split="train").queries] == ["q3"]
    (beir / "queries_dev.jsonl").write_text('{"_id": "q9", "text": "more"}\n')
    (beir / "qrels" / "dev.tsv").write_text("q9\td1\t1\n")
    assert read(beir, split="dev").queries == [Query("q9", "more")]
    with pytest.raises(InputError, match="no split 'tset'; it has dev, test, train"):
        read(beir, split="tset")


def test_a_folder_without_judgements_keeps_all_queries(beir: Path) -> None:
    for path in (beir / "qrels").iterdir():
        path.unlink()
    (beir / "qrels").rmdir()
    made = read(beir)
    assert made.qrels == {}
    assert len(made.queries) == 3
    (beir / "queries.jsonl").unlink()
    assert read(beir).queries == []


def test_gzip_and_byte_order_marks_are_read(beir: Path) -> None:
    plain = read(beir)
    text = (beir / "corpus.jsonl").read_bytes()
    (beir / "corpus.jsonl").unlink()
    (beir / "corpus.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")))
    assert read(beir).fingerprint == plain.fingerprint


def test_the_fingerprint_covers_everything(beir: Path) -> None:
    seen = {read(beir).fingerprint, read(beir, split="train").fingerprint}
    for name, old, new in (("corpus", "wind", "winds"), ("queries", "question 1", "question one")):
        path = beir / f"{name}.jsonl"
        path.write_text(path.read_text().replace(old, new))
        seen.add(read(beir).fingerprint)
    assert len(seen) == 4
    # Moving a word from the title to the text gives the same content, but another collection.
    parts = [Documents.of([Document("1", "b c", "a")]), Documents.of([Document("1", "c", "a b")])]
    assert parts[0].fingerprint != parts[1].fingerprint


def test_judgements_of_a_larger_collection_are_kept_and_said(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("q1\td1\t1\nq1\telsewhere\t2\nq2\tother\t0\nq2\td2\t1\n")
    made = read(beir)
    assert made.qrels == {"q1": {"d1": 1, "elsewhere": 2}, "q2": {"other": 0, "d2": 1}}
    assert made.outside == 2
    assert any("test.tsv:2: document 'elsewhere'" in note for note in made.notes)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("corpus.jsonl", b'{"_id": "a", "text": "x"}\n{"_id": "b", "te', r"corpus.jsonl:2: not JSON: .* column 14"),
        ("corpus.jsonl", b'{"_id": "a", "text": "x"}\n[1]\n', r"corpus.jsonl:2: expected a JSON object, found list"),
        ("corpus.jsonl", b'\n{"_id": "a", "txt": "x"}\n', r"corpus.jsonl:2: no field 'text'; did you mean 'txt'"),
        ("corpus.jsonl", b'{"id": "a", "text": "x"}\n', r"corpus.jsonl:1: no field '_id'; did you mean 'id'"),
        ("corpus.jsonl", b'{"_id": null, "text": "x"}\n', r"corpus.jsonl:1: field '_id' must be a string"),
        ("corpus.jsonl", b'{"_id": " ", "text": "x"}\n', r"corpus.jsonl:1: field '_id' is empty"),
        ("corpus.jsonl", b'{"_id": "a\\tb", "text": "x"}\n', r"corpus.jsonl:1: id 'a\\tb' holds a tab"),
        ("corpus.jsonl", b'{"_id": "a", "text": ["x"]}\n', r"corpus.jsonl:1: field 'text' must be text, not a list"),
        (
            "corpus.jsonl",
            b'{"_id": "a", "text": "x"}\n{"_id": "b", "text": "y"}\n{"_id": "a", "text": "z"}\n',
            r"corpus.jsonl:3: duplicate document id 'a'",
        ),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "b", "text": "Küste"}\n'.encode("latin-1"),
            r"corpus.jsonl:2: byte 24 of the line \(0xfc\) is not UTF-8",
        ),
        ("corpus.jsonl", b'{"_id": "a", "text": "\\ud800"}\n', r"corpus.jsonl:1: U\+D800 alone is no character"),
        ("corpus.jsonl", b"", r"made: no documents; nothing can be ranked"),
        ("corpus.jsonl", b'{"_id": "d1", "text": null}\n', r"made: no documents \(1 without text\)|not in the coll"),
        ("corpus.jsonl", b"[" * 100_000, r"corpus.jsonl:1: not JSON"),
        ("corpus.jsonl", b'{"_id": ' + b"1" * 5000 + b"}", r"corpus.jsonl:1: not JSON that can be read"),
        ("queries.jsonl", b'{"_id": "q1", "text": ""}\n', r"queries.jsonl:1: query 'q1' has no text"),
        (
            "queries.jsonl",
            b'{"_id": 1, "text": "x"}\n{"_id": "1", "text": "x"}\n',
            r"queries.jsonl:2: duplicate query id '1'",
        ),
        ("qrels/test.tsv", b"q1\td1\t1\nqX\td1\t1\n", r"test.tsv:2: query 'qX' is not in the collection's queries"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\tdX\t1\n", r"test.tsv:2: document 'dX' is not in the collection"),
        ("qrels/test.tsv", b"q1\tx\t0\nq1\ty\t1\n", r"test.tsv:1: document 'x' is not in the collection \(2 such"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\td2\thigh\n", r"test.tsv:2: grade 'high' is not a whole number"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\td2\t31715818\n", r"test.tsv:2: grade '31715818' is not a whole number"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\n", r"test.tsv:2: expected query id, document id and grade"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\td1\t2\n", r"test.tsv:2: document 'd1' was judged 1 .* before, now 2"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\n", r"test.tsv: no judgements"),
    ],
)
def test_malformed_input_is_named_by_file_and_line(beir: Path, name: str, text: bytes, message: str) -> None:
    (beir / name).write_bytes(text)
    if name == "corpus.jsonl":  # its own mistakes, not those of judgements that no longer fit
        for path in (beir / "qrels").iterdir():
            path.unlink()
        (beir / "qrels").rmdir()
    with pytest.raises(InputError, match=message) as caught:
        read(beir)
    assert "\n" not in str(caught.value)


def test_a_damaged_gzip_is_named(beir: Path) -> None:
    zipped = gzip.compress((beir / "corpus.jsonl").read_bytes())
    (beir / "corpus.jsonl").unlink()
    (beir / "corpus.jsonl.gz").write_bytes(zipped[:-12])
    with pytest.raises(InputError, match=r"corpus.jsonl.gz:\d+: damaged gzip"):
        read(beir)


def test_no_such_collection(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such collection; give a BEIR folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither corpus\.jsonl"):
        read(tmp_path)
    (tmp_path / "documents.xml").write_text("<a/>")
    with pytest.raises(InputError, match="unknown kind of file"):
        read(tmp_path / "documents.xml")


NAMES = {"id_field": "key", "title_field": "head", "text_field": "body"}
RECORDS = [Document("1", "first, body", "Head"), Document("2", 'with "quotes"\nand lines', "")]


def test_files_with_named_fields(tmp_path: Path) -> None:
    rows = [{"key": int(d.id), "head": d.title, "body": d.text} for d in RECORDS]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "d.csv").write_text('key,head,body\n1,Head,"first, body"\n\n2,,"with ""quotes""\nand lines"\n')
    (tmp_path / "d.tsv").write_text('key\thead\tbody\n1\tHead\tfirst, body\n2\t\t"with ""quotes""\nand lines"\n')
    pq.write_table(
        pa.table({name: [row[name] for row in rows] for name in ("body", "head", "key")}), tmp_path / "d.parquet"
    )
    for kind in ("jsonl", "csv", "tsv", "parquet"):
        made = read(tmp_path / f"d.{kind}", **NAMES)
        assert list(made.documents) == RECORDS, kind
        assert (made.queries, made.qrels, made.name) == ([], {}, f"d.{kind}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("key,body\n1,a\n2,b,c\n", r"d.csv:3: 3 fields, but the first line names 2"),
        ('key,body\n1,"a\n', r"d.csv:2: not CSV: unexpected end of data"),
        ("key,text\n1,a\n", r"d.csv:2: no field 'body'; known: key, text"),
        ('key,body\n1,"a\nb"\n1,c\n', r"d.csv:4: duplicate document id '1'"),
    ],
)
def test_malformed_csv_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "d.csv", **NAMES)


def test_malformed_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"key": ["1", "1"], "body": ["a", "b"]}), path)
    with pytest.raises(InputError, match=r"d\.parquet:2: duplicate document id '1'"):
        read(path, **NAMES)
    with pytest.raises(InputError, match="no column 'text'; it has key, body"):
        read(path, id_field="key")
    pq.write_table(pa.table({"key": ["1", None], "body": ["a", None]}), path)
    with pytest.raises(InputError, match=r"d\.parquet:2: field 'key' must be a string .* not null"):
        read(path, **NAMES)
    latin = pa.array(["Küste".encode("latin-1")], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"key": ["1"], "body": latin}), path)
    with pytest.raises(InputError, match=r"rows 1 to \d+ is not UTF-8"):
        read(path, **NAMES)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read(path, **NAMES)


def test_long_csv_fields_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(f"key,body\n1,{'word ' * 50_000}\n")
    assert len(read(tmp_path / "d.csv", **NAMES).documents[0].text) == 250_000


def test_documents_are_a_sequence_over_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_CHUNK", 4)
    made = [Document(f"d{i}", f"text {i} é", f"title {i}" if i % 2 else "") for i in range(11)]
    lean = Documents.of(made)
    assert len(lean) == 11
    assert list(lean) == made
    assert [lean[i] for i in range(11)] == made
    assert lean[-1] == made[-1]
    assert lean[3:9:2] == made[3:9:2]
    assert lean.ids == [d.id for d in made]
    assert lean.get("d7") == made[7]
    assert lean.get("nope") is None
    assert dict(lean.contents) == {d.id: d.content for d in made}
    assert "nope" not in lean.contents
    with pytest.raises(IndexError):
        lean[11]
    with pytest.raises(InputError, match="duplicate document id 'd1'"):
        Documents.of([made[1], made[1]])


def test_parquet_round_trips(tmp_path: Path) -> None:
    made = [Document("a", "text\n\x00 é 漢", "title"), Document("b", "", "only title"), Document("c d", "x")]
    write_documents(tmp_path / "documents.parquet", made)
    assert list(read_documents(tmp_path / "documents.parquet")) == made
    assert pq.read_table(tmp_path / "documents.parquet").column_names == ["id", "title", "text"]
    queries = [Query("1", "one"), Query("2", "two é")]
    write_queries(tmp_path / "queries.parquet", queries)
    assert read_queries(tmp_path / "queries.parquet") == queries
    with pytest.raises(InputError, match="no column 'title'"):
        read_documents(tmp_path / "queries.parquet")
    with pytest.raises(InputError, match="no such file"):
        read_documents(tmp_path / "nothing.parquet")


class _TitledDoc(NamedTuple):
    doc_id: str
    title: str
    text: str

    def default_text(self) -> str:
        return f"{self.title} {self.text}"


class _BareDoc(NamedTuple):
    doc_id: str
    abstract: str

    def default_text(self) -> str:
        return self.abstract


class _Query(NamedTuple):
    query_id: str
    description: str

    def default_text(self) -> str:
        return self.description


class _Qrel(NamedTuple):
    query_id: str
    doc_id: str
    relevance: int


class _Dataset:
    def __init__(self, docs: list[object]) -> None:
        self.docs = docs

    def has_docs(self) -> bool:
        return bool(self.docs)

    def has_queries(self) -> bool:
        return True

    has_qrels = has_queries

    def docs_iter(self) -> list[object]:
        return self.docs

    def queries_iter(self) -> list[_Query]:
        return [_Query("1", "one"), _Query("2", "two")]

    def qrels_iter(self) -> list[_Qrel]:
        return [_Qrel("2", "a", 1)]


def test_ir_datasets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets

    catalogue = {
        "titled": _Dataset([_TitledDoc("a", "Title", "text"), _TitledDoc("b", "", " ")]),
        "bare": _Dataset([_BareDoc("a", "abstract")]),
        "queries-only": _Dataset([]),
    }
    monkeypatch.setattr(ir_datasets, "load", lambda name: catalogue[name])
    titled = read("ir_datasets:titled")
    assert list(titled.documents) == [Document("a", "text", "Title")]
    assert (titled.queries, titled.qrels, titled.skipped) == ([Query("2", "two")], {"2": {"a": 1}}, 1)
    assert list(read("ir_datasets:bare").documents) == [Document("a", "abstract")]
    with pytest.raises(InputError, match="ir_datasets:nope: no such dataset"):
        read("ir_datasets:nope")
    with pytest.raises(InputError, match="has no documents"):
        read("ir_datasets:queries-only")


def test_a_folder_in_place_of_a_file_is_no_traceback(beir: Path) -> None:
    (beir / "queries.jsonl").unlink()
    (beir / "queries.jsonl").mkdir()
    with pytest.raises(InputError, match=r"queries\.jsonl: cannot be read"):
        read(beir)
