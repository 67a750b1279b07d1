"""The questions that ship for `pythondocs`: form, answers, difficulty."""

from __future__ import annotations

import json
import re
import sys
from importlib import resources

import numpy as np
import pytest

from inranker.collection.pythondocs import read_pythondocs
from inranker.collection.questions import read_questions
from inranker.retrieve.bm25 import BM25
from inranker.retrieve.language import WORD, stemmer, stop_words

SPLITS = ("train", "test")
ON_REFERENCE = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the names were chosen on Python 3.11")

# Docstrings that early patch releases of 3.11 lack.
DOCUMENTED_LATER = {"asyncio.TaskGroup", "asyncio.Timeout", "io.TextIOWrapper.seek"}


@pytest.fixture(scope="module")
def documents():
    return {document.id: document for document in read_pythondocs()}


@pytest.fixture(scope="module")
def questions():
    text = resources.files("inranker.collection").joinpath("pythondocs_questions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def module_of(name: str) -> str:
    head = name.split(".")[0]
    return head if head == "topics" or head in sys.stdlib_module_names else "builtins"


def content_words(text: str) -> set[str]:
    stop, stem = stop_words("en"), stemmer("en")
    return {stem(word) for word in WORD.findall(text.lower()) if word not in stop}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ndcg_at_10(ranked: list[str], relevant: dict[str, int]) -> float:
    gains = [1 / np.log2(place + 2) for place in range(10)]
    found = sum(gain for gain, document in zip(gains, ranked, strict=False) if document in relevant)
    return float(found / sum(gains[: len(relevant)]))


def test_form(questions):
    assert len(questions) >= 320
    assert len({question["id"] for question in questions}) == len(questions)
    assert len({question["text"].lower() for question in questions}) == len(questions)
    for question in questions:
        assert set(question) == {"id", "text", "answers", "split"}
        assert len(question["text"].split()) >= 2
        assert 1 <= len(question["answers"]) == len(set(question["answers"]))
    counts = {split: sum(question["split"] == split for question in questions) for split in SPLITS}
    assert counts["train"] >= 200 and counts["test"] >= 100 and sum(counts.values()) == len(questions)


def test_no_module_in_both_parts_and_many_modules(questions):
    modules = {
        split: {module_of(name) for question in questions if question["split"] == split for name in question["answers"]}
        for split in SPLITS
    }
    assert not modules["train"] & modules["test"]
    assert len(modules["train"] | modules["test"]) >= 60


@ON_REFERENCE
def test_every_answer_is_documented(documents, questions):
    unknown = {name for question in questions for name in question["answers"]} - set(documents)
    assert unknown <= DOCUMENTED_LATER
    if not unknown:
        for split in SPLITS:
            read = read_questions(split, documents)
            assert (read.lacking, read.dropped, read.notes) == (0, 0, ())


def test_there_are_enough_questions_on_the_running_python(documents):
    assert len(read_questions("train", documents).queries) >= 200
    assert len(read_questions("test", documents).queries) >= 100


@ON_REFERENCE
def test_half_of_the_questions_share_few_words_with_their_answers(documents, questions):
    low = 0
    for question in questions:
        asked = content_words(question["text"])
        shared = max(len(asked & content_words(documents[name].content)) for name in question["answers"])
        low += shared <= 0.3 * len(asked)
    assert low >= 0.5 * len(questions)


@ON_REFERENCE
def test_no_question_is_copied(documents, questions):
    for question in questions:
        asked = words(question["text"])
        runs = {" ".join(asked[start : start + 6]) for start in range(len(asked) - 5)}
        for name in question["answers"]:
            text = " ".join(words(documents[name].content))
            assert not [run for run in runs if run in text]


@ON_REFERENCE
def test_bm25_alone_is_neither_useless_nor_enough(documents):
    index = BM25.index(list(documents.values()))
    values: dict[str, list[float]] = {}
    for split in SPLITS:
        read = read_questions(split, documents)
        run = index.search(read.queries, 10)
        values[split] = [
            ndcg_at_10([scored.document_id for scored in run[query.id]], read.qrels[query.id]) for query in read.queries
        ]
    assert 0.25 <= np.mean(values["train"] + values["test"]) <= 0.65
    for split in SPLITS:
        assert 0.25 <= np.mean(values[split]) <= 0.65


def test_unknown_answers_are_left_out_and_counted(questions):
    asked = [question for question in questions if question["split"] == "test"]
    several = next(question for question in asked if len(question["answers"]) > 1)
    read = read_questions("test", {several["answers"][0]})
    assert several["id"] in {query.id for query in read.queries}
    assert read.qrels[several["id"]] == {several["answers"][0]: 1}
    assert read.dropped == len(asked) - len(read.queries) > 0
    assert read.lacking == sum(len(q["answers"]) for q in asked) - sum(map(len, read.qrels.values()))
    assert str(read.lacking) in read.notes[0] and str(read.dropped) in read.notes[0]
