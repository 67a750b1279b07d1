"""BM25: the scores of bm25s's `lucene`, in little memory, with ties as trec_eval orders them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from types import ModuleType

import bm25s
import numpy as np
import pytest
import Stemmer

from inranker.collection import Documents
from inranker.errors import InputError, InputWarning
from inranker.retrieve import BM25, bm25, sort_documents
from inranker.retrieve.language import SNOWBALL, mismatch, require_bm25s, stemmer
from inranker.types import Document, Query

SENTENCES = {
    "en": "The boats of the river are in the harbour and it is not for sale, but there was no wind at the coast. ",
    "de": "Die Boote auf dem Fluss sind nicht zu verkaufen, und es gibt keinen Wind, weil er bei ihnen ist. ",
    "fr": "Les bateaux sur la rivière ne sont pas à vendre et il n'y a pas de vent sur les côtes avec nous. ",
    "es": "Los barcos en el río no se venden y no hay viento en la costa porque ellos están con nosotros. ",
    "ru": "Лодки на реке не продаются, и на берегу нет ветра, потому что он был с ними и это всё. ",
    "ja": "川の船は売り物ではなく、海岸には風がない。 ",
}


def corpus(count: int, seed: int = 0) -> list[Document]:
    random = np.random.default_rng(seed)
    words = np.array(["running", "ran", "the", "boats", "boat", "harbour", "wind", "and", "C3PO", "naïve", "x"])
    shares = np.arange(len(words), 0, -1) / np.arange(1, len(words) + 1).sum()
    return [
        Document(
            f"d{i}",
            " ".join(random.choice(words, random.integers(1, 30), p=shares)),
            title=" ".join(random.choice(words, random.integers(0, 3))),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("part", [64, 4_000_000])
def test_scores_are_those_of_bm25s(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    # Small parts exercise the merging of postings; both must give what one bm25s index of everything gives.
    monkeypatch.setattr(bm25, "_TOKENS_A_PART", part)
    documents = corpus(200)
    queries = [Query("1", "running boats in the harbour"), Query("2", "wind wind naïve"), Query("3", "C3PO")]
    stem = Stemmer.Stemmer("porter")

    def tokens(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stem, return_ids=False, show_progress=False)

    reference = bm25s.BM25(method="lucene", k1=1.1, b=0.6)
    reference.index(tokens([document.content for document in documents]), show_progress=False)
    run = BM25.index(documents, k1=1.1, b=0.6).search(queries, depth=50)
    for query in queries:
        scores = reference.get_scores(tokens([query.text])[0])
        expected = sort_documents(
            (d.id, float(s)) for d, s in zip(documents, np.round(scores, 4), strict=True) if s > 0
        )
        found = sort_documents((name, round(score, 4)) for name, score in run[query.id])
        assert [d.score for d in found] == pytest.approx([d.score for d in expected[:50]], abs=2e-4)
        by_id = dict(expected)
        assert all(by_id[name] == pytest.approx(score, abs=2e-4) for name, score in found)


def test_ties_fall_by_id_descending_also_at_the_cut() -> None:
    documents = [Document(name, "wind") for name in ("10", "9", "b", "a", "1")] + [Document("0", "wind wind sea")]
    index = BM25.index(documents)
    assert [d.document_id for d in index.search([Query("q", "wind")], depth=10)["q"]] == ["0", "b", "a", "9", "10", "1"]
    assert [d.document_id for d in index.search([Query("q", "wind")], depth=3)["q"]] == ["0", "b", "a"]


def test_only_documents_that_share_a_word_are_found() -> None:
    index = BM25.index([Document("1", "the"), Document("2", "wind"), Document("3", "sea")])
    queries = [Query("none", "moon"), Query("stop", "the and of"), Query("empty", "  "), Query("one", "winds")]
    run = index.search(queries, depth=5)
    assert {query: [d.document_id for d in found] for query, found in run.items()} == {
        "none": [],
        "stop": [],
        "empty": [],
        "one": ["2"],
    }


def test_a_corpus_of_stop_words_finds_nothing() -> None:
    assert BM25.index([Document("1", "the and of")]).search([Query("q", "the wind")], 10) == {"q": []}
    with pytest.raises(InputError, match="no documents"):
        BM25.index([])


def test_titles_are_indexed_and_lean_documents_index_alike() -> None:
    documents = corpus(50, seed=3)
    queries = [Query("q", "boat harbour")]
    assert BM25.index(Documents.of(documents)).search(queries, 9) == BM25.index(documents).search(queries, 9)
    assert [d.document_id for d in BM25.index([Document("1", "sea", "Wind")]).search([Query("q", "wind")], 1)["q"]] == [
        "1"
    ]


def test_stemmers_follow_the_language() -> None:
    index = BM25.index([Document("1", "die Häuser am Fluss"), Document("2", "ein Boot")], language="de")
    assert [d.document_id for d in index.search([Query("q", "die hauses Haus")], 5)["q"]] == ["1"]
    for language in SNOWBALL:
        assert stemmer(language)("a") is not None
    with pytest.raises(InputError, match="no stemmer for language 'zh'"):
        BM25.index([Document("1", "text")], language="zh")


@pytest.mark.parametrize(
    ("text", "said", "looks_like"),
    [
        ("en", "en", None),
        ("de", "de", None),
        ("fr", "fr", None),
        ("es", "es", None),
        ("ru", "ru", None),
        ("en", "fr", "English"),
        ("de", "en", "German"),
        ("fr", "en", "French"),
        ("ru", "en", "Cyrillic script"),
        ("en", "el", "Latin script"),
    ],
)
def test_a_corpus_in_another_language_is_noticed(text: str, said: str, looks_like: str | None) -> None:
    documents = [Document(str(i), SENTENCES[text] * 3) for i in range(10)]
    assert mismatch(documents, said) == looks_like
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        BM25.index(documents, language=said)
    assert [w.category for w in caught] == ([InputWarning] if looks_like else [])


def test_too_little_text_says_nothing_about_its_language() -> None:
    assert mismatch([Document("1", SENTENCES["de"])], "en") is None
    assert mismatch([Document("1", SENTENCES["ja"] * 200)], "en") is not None


def test_bm25_leaves_jax_alone(tmp_path):
    """Where JAX is installed, importing bm25s would reserve most of a GPU's memory."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise RuntimeError('JAX was imported')\n")
    code = (
        "import importlib.util, sys\n"
        "from inranker.retrieve import BM25\n"
        "from inranker.types import Document, Query\n"
        "index = BM25.index([Document('a', 'harbour wind'), Document('b', 'boats')])\n"
        "assert [d.document_id for d in index.search([Query('q', 'the wind')])['q']] == ['a']\n"
        "assert 'jax' not in sys.modules and importlib.util.find_spec('jax') is not None\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr


def test_bm25s_may_see_a_jax_that_is_in_use(monkeypatch):
    jax = ModuleType("jax")
    monkeypatch.setitem(sys.modules, "jax", jax)
    require_bm25s()
    assert sys.modules["jax"] is jax
