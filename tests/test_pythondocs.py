"""The documentation of the running Python as a collection, and of small made libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inranker.collection.pythondocs import MIN_WORDS, read_pythondocs
from inranker.errors import InputError

WORDS = "one two three four five six seven eight"

# Prints a digest of the collection and which modules reading it loads; those named as arguments are loaded before.
PROBE = """
import hashlib, importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import inranker.collection.pythondocs as pythondocs
before = set(sys.modules)
documents = pythondocs.read_pythondocs()
text = json.dumps([(d.id, d.title, d.text) for d in documents])
print(json.dumps([len(documents), hashlib.sha256(text.encode()).hexdigest(), sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def documents():
    return {document.id: document for document in read_pythondocs()}


def library(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def read(folder: Path, files: dict[str, str]):
    return {document.id: document for document in read_pythondocs(library(folder, files))}


def test_running_python_has_thousands_of_documents_within_the_time():
    start = time.process_time()
    found = read_pythondocs()
    assert time.process_time() - start < 20
    assert len(found) >= 4000
    assert [document.id for document in found] == sorted({document.id for document in found})


def test_documents_are_public_long_enough_and_unlike_each_other(documents):
    texts = [" ".join(document.text.split()) for document in documents.values()]
    assert min(len(re.findall(r"\w+", document.content)) for document in documents.values()) >= MIN_WORDS == 8
    assert len(set(texts)) == len(texts)
    assert not [name for name in documents if any(part.startswith("_") for part in name.split("."))]
    assert not [name for name in documents if " " in name]
    assert all(document.content.strip() for document in documents.values())


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("shutil.move", "shutil.move(src, dst, copy_function=copy2)"),
        ("textwrap.dedent", "textwrap.dedent(text)"),
        ("os.walk", "os.walk(top, topdown=True, onerror=None, followlinks=False)"),
        ("asyncio.gather", "asyncio.gather(*coros_or_futures, return_exceptions=False)"),
        ("unittest.TestCase.assertAlmostEqual", None),
        ("json.JSONDecoder", None),
        ("collections.abc.MutableMapping.pop", None),
        ("datetime.datetime.isoformat", None),
        ("itertools.groupby", None),
        ("str.split", None),
        ("str.maketrans", None),
        ("re.escape", "re.escape(pattern)"),
        ("math.isclose", "math.isclose(a, b, *, rel_tol=1e-09, abs_tol=0.0)"),
        ("os.listdir", "os.listdir(path=None)"),
        ("topics.with", 'The "with" statement'),
        ("argparse", "argparse"),
        ("hashlib", "hashlib"),
    ],
)
def test_known_names_are_there(documents, name, title):
    assert name in documents
    if title:
        assert documents[name].title == title


def test_tests_and_code_tables_are_left_out(documents):
    roots = {name.split(".")[0] for name in documents}
    assert not roots & {"test", "idlelib", "lib2to3", "encodings", "distutils", "pydoc_data", "turtledemo"}
    assert not [name for name in documents if {"test", "tests"} & set(name.split(".")[:-1])]


def test_collection_does_not_depend_on_what_is_loaded_and_loads_nothing():
    outputs = []
    for extra in ([], ["csv", "sqlite3", "decimal", "zlib", "array", "unittest.mock", "multiprocessing"]):
        process = subprocess.run(
            [sys.executable, "-c", PROBE, *extra], capture_output=True, text=True, check=True, timeout=120
        )
        outputs.append(json.loads(process.stdout))
    assert outputs[0] == outputs[1]
    assert outputs[0][2] == []


def test_a_replaced_hook_of_the_interpreter_keeps_its_document(monkeypatch, documents):
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    assert {document.id: document for document in read_pythondocs()} == documents
    assert "sys.excepthook" in documents


def test_re_exported_name_is_the_public_one(tmp_path):
    found = read(
        tmp_path,
        {
            "json/__init__.py": "from .decoder import Decoder, helper\n__all__ = ['Decoder']\n",
            "json/decoder.py": f"class Decoder:\n '{WORDS} d'\n def go(self):\n  '{WORDS} g'\n"
            f"def helper(): '{WORDS} h'\n",
            "io.py": "from _pyio import *\n",
            "_pyio.py": f"def open(file): '{WORDS} o'\ndef _hidden(): '{WORDS} x'\n",
            "csv.py": "from json import Decoder\n",
        },
    )
    assert sorted(found) == ["io.open", "json.Decoder", "json.Decoder.go", "json.decoder.helper"]


def test_members_of_private_bases_belong_to_the_public_class(tmp_path):
    source = f"""
class _Base:
    def inherited(self, x, *, y=1): "{WORDS} a"
    def replaced(self): "{WORDS} b"
class Public(_Base):
    def __init__(self, a, b=2): pass
    "not a docstring"
    def replaced(self): "{WORDS} c"
    @property
    def value(self): "{WORDS} d"
    @staticmethod
    def make(text): "{WORDS} e"
    @classmethod
    def load(cls, text): "{WORDS} f"
    if True:
        async def fetch(self, /): "{WORDS} g"
    class Inner:
        "{WORDS} h"
"""
    found = read(tmp_path, {"queue.py": source})
    assert {name: document.title for name, document in found.items()} == {
        "queue.Public.inherited": "queue.Public.inherited(x, *, y=1)",
        "queue.Public.replaced": "queue.Public.replaced()",
        "queue.Public.value": "queue.Public.value",
        "queue.Public.make": "queue.Public.make(text)",
        "queue.Public.load": "queue.Public.load(text)",
        "queue.Public.fetch": "queue.Public.fetch()",
        "queue.Public.Inner": "queue.Public.Inner",
    }
    assert found["queue.Public.replaced"].text == f"{WORDS} c"


def test_equal_texts_are_merged_and_short_ones_dropped(tmp_path):
    found = read(
        tmp_path,
        {
            "bz2.py": f"def first():\n '''{WORDS}\n\n   more'''\ndef second(): '{WORDS} more'\ndef third(): 'short'\n",
            "gzip.py": f"class A:\n def first(self): '{WORDS} more'\n",
        },
    )
    assert list(found) == ["bz2.first"]


def test_what_is_not_the_standard_library_is_left_out(tmp_path):
    source = f"def f(): '{WORDS}'"
    files = ["site-packages/csv.py", "mine.py", "unittest/test/support.py", "json/tests/util.py", "_private.py"]
    found = read(tmp_path, dict.fromkeys(files, source) | {"csv.py": f"def g(): '{WORDS} g'"})
    assert list(found) == ["csv.g"]


def test_abstract_collections_without_a_source_of_their_own(tmp_path):
    found = read(tmp_path, {"_collections_abc.py": f"class Mapping:\n '{WORDS}'\n"})
    assert list(found) == ["collections.abc.Mapping"]


def test_chapters_are_split_into_heading_and_text(tmp_path):
    chapter = f'The "with" statement\n********************\n\n{WORDS}\n'
    found = read(tmp_path, {"csv.py": "", "pydoc_data/topics.py": f"topics = {{'with': {chapter!r}}}\n"})
    assert found["topics.with"].title == 'The "with" statement'
    assert found["topics.with"].text == WORDS


def test_a_folder_without_sources_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no sources of the standard library"):
        read_pythondocs(tmp_path)
