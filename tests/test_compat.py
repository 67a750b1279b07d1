"""What was written for the published package goes on running."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from conftest import WORDS
from inranker import InRankerTrainer, T5Ranker
from inranker.compat import group_by_query
from inranker.errors import InputError
from inranker.label.published import read_msmarco_labels, read_text_labels
from inranker.sequence import ModelSettings
from inranker.types import SoftLabel

DOCS = [" ".join(WORDS[i : i + n]) for i, n in [(0, 4), (5, 1), (7, 30), (9, 0)]] + [" ".join(WORDS * 14)]


def published_scores(
    folder: Path, query: str, docs: list[str], max_length: int
) -> tuple[list[float], list[list[float]]]:
    """The published computation: one padded batch, logits of the whole vocabulary, a softmax over two."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = [f"Query: {query} Document: {d} Relevant:" for d in docs]
    batch = tokenizer(texts, padding=True, truncation="longest_first", max_length=max_length, return_tensors="pt")
    answers = tokenizer.convert_tokens_to_ids(["▁false", "▁true"])
    start = torch.full((len(docs), 1), model.config.decoder_start_token_id)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=start).logits[
            :, 0, answers
        ]
    return logits.softmax(-1)[:, 1].tolist(), logits.tolist()


@pytest.mark.parametrize("max_length", [512, 64])
def test_scores_are_the_published_ones(tiny_t5: Callable[[str], Path], max_length: int) -> None:
    folder = tiny_t5("v1.0")
    scores, logits = published_scores(folder, "kaban lodel", DOCS, max_length)
    ranker = T5Ranker(model_name_or_path=str(folder), batch_size=2, device="cpu")
    ours, our_logits = ranker.get_scores("kaban lodel", DOCS, max_length, return_logits=True)
    np.testing.assert_allclose(our_logits, logits, atol=1e-4)
    np.testing.assert_allclose(ours, scores, atol=1e-4)
    assert ranker.get_scores(query="kaban lodel", docs=DOCS, max_length=max_length) == ours
    assert all(type(score) is float for score in ours)
    assert np.std(ours) > 0.01


@pytest.mark.parametrize(("variant", "words"), [("v1.0", "false true"), ("v1.1", "false true"), ("mt5", "no yes")])
def test_scores_are_those_of_the_rerankers_package(tiny_t5: Callable[[str], Path], variant: str, words: str) -> None:
    from rerankers.models.t5ranker import T5Ranker as Other

    folder = str(tiny_t5(variant))
    answers = [f"▁{word}" for word in words.split()]
    other = Other(folder, device="cpu", dtype="float32", verbose=0, token_false=answers[0], token_true=answers[1])
    theirs = other._get_scores("kaban lodel", [d for d in DOCS if d], 512)
    ours = T5Ranker(folder).get_scores("kaban lodel", [d for d in DOCS if d], 512)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_published_example_runs(tiny_t5: Callable[[str], Path]) -> None:
    code = f"""
from inranker import T5Ranker

model = T5Ranker(model_name_or_path="{tiny_t5("v1.0")}")

docs = [
    "The capital of France is Paris",
    "Learn deep learning with InRanker and transformers"
]
scores = model.get_scores(
    query="What is the best way to learn deep learning?",
    docs=docs
)
sorted_scores = sorted(zip(scores, docs), key=lambda x: x[0], reverse=True)
assert len(sorted_scores) == 2 and all(0 <= score <= 1 for score, _ in sorted_scores)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_a_trained_folder_is_fed_as_it_was_trained(tiny_t5: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_t5("v1.0"), tmp_path / "copy"))
    legacy = T5Ranker(str(folder)).get_scores("kaban", DOCS)
    ModelSettings("t5", "strict").write(folder)
    strict = T5Ranker(str(folder)).get_scores("kaban", DOCS)
    np.testing.assert_allclose(strict[:-1], legacy[:-1], atol=1e-6)  # pairs that fit
    assert abs(strict[-1] - legacy[-1]) > 1e-5


def test_half_precision_and_bad_arguments(tiny_t5: Callable[[str], Path]) -> None:
    folder = str(tiny_t5("v1.0"))
    exact = T5Ranker(folder).get_scores("kaban", DOCS)
    np.testing.assert_allclose(T5Ranker(folder, bf16=True).get_scores("kaban", DOCS), exact, atol=0.05)
    np.testing.assert_allclose(T5Ranker(folder, fp16=True).get_scores("kaban", DOCS), exact, atol=0.02)
    assert T5Ranker(folder, silent=False).get_scores("kaban", []) == []
    with pytest.raises(InputError, match="choose one"):
        T5Ranker(folder, fp16=True, bf16=True)
    with pytest.raises(InputError, match="batch_size"):
        T5Ranker(folder, batch_size=0)


def test_import_of_the_package_loads_no_torch() -> None:
    code = "import sys, inranker; assert not {'torch', 'transformers'} & set(sys.modules); dir(inranker)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_msmarco_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("1.5\t-2.5\t7\t42\n\n-3\t4e0\t7\t43\n")
    assert list(read_msmarco_labels(path)) == [SoftLabel("7", "42", -2.5, 1.5), SoftLabel("7", "43", 4.0, -3.0)]
    for line, what in [("1\t2\t3", "3 columns"), ("1\tx\t3\t4", "'x' is not a finite"), ("nan\t1\t3\t4", "'nan'")]:
        path.write_text(f"1\t2\t3\t4\n{line}\n")
        with pytest.raises(InputError, match=rf"labels.tsv:2: .*{what}"):
            list(read_msmarco_labels(path))
    path.write_bytes(b"1\t2\t3\t4\n1\t2\t\xff\t4\n")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_msmarco_labels(path))
    with pytest.raises(InputError, match="no such file"):
        list(read_msmarco_labels(tmp_path / "none.tsv"))


def test_text_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    row = {"query": "q", "contents": "d", "true_logit": 1.0, "false_logit": "-2"}
    path.write_text("".join(json.dumps({**row, "contents": f"d{i}"}) + "\n" for i in range(3)))
    labels = list(read_text_labels(path))
    assert labels[1] == ("q", "d1", -2.0, 1.0)
    grouped = group_by_query([*labels, labels[0]._replace(query="alone")])
    assert len(grouped) == 1 and grouped[0].documents == ["d0", "d1", "d2"]
    np.testing.assert_allclose(grouped[0].margins, [3, 3, 3])
    for line, what in [
        ("{", "not JSON"),
        ("[]", "lacks query"),
        (json.dumps({**row, "query": 3}), "must be texts"),
        (json.dumps({**row, "true_logit": None}), "None is not a finite"),
    ]:
        path.write_text(f"{json.dumps(row)}\n{line}\n")
        with pytest.raises(InputError, match=rf"labels.jsonl:2: .*{what}"):
            list(read_text_labels(path))


def test_the_trainer_trains(tiny_t5: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    with path.open("w") as file:
        for i in range(12):
            for j in range(4):
                row = {"query": WORDS[i], "contents": WORDS[i + j], "true_logit": float(-j), "false_logit": float(j)}
                file.write(json.dumps(row) + "\n")
    with pytest.warns(DeprecationWarning, match="inranker distill"):
        trainer = InRankerTrainer(
            model=str(tiny_t5("v1.0")),
            batch_size=16,
            warmup_steps=2,
            learning_rate=1e-3,
            output_dir=str(tmp_path / "out"),
        )
    data = trainer.load_custom_dataset(str(path), max_length=64)
    assert len(data) == 12
    result = trainer.train(data)
    settings = ModelSettings.read(result.student)
    assert settings is not None and (settings.architecture, settings.mode, settings.max_length) == ("t5", "strict", 64)
    AutoModelForSeq2SeqLM.from_pretrained(result.student)
    assert len(T5Ranker(str(result.student)).get_scores("kaban", DOCS)) == len(DOCS)
    with pytest.raises(InputError, match="nothing to train on"):
        trainer.train([])


def test_msmarco_training_data(tiny_t5: Callable[[str], Path], tmp_path: Path) -> None:
    corpus = [{"_id": str(i), "title": "", "text": WORDS[i]} for i in range(5)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in corpus))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "9", "text": WORDS[2]}) + "\n")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n9\t2\t1\n")
    (tmp_path / "labels.tsv").write_text("3\t-3\t9\t2\n-1\t1\t9\t4\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        trainer = InRankerTrainer(model=str(tiny_t5("v1.0")))
    data = trainer.load_msmarco_dataset(str(tmp_path / "labels.tsv"), collection=str(tmp_path))
    assert [(q.text, q.documents, q.grades.tolist()) for q in data] == [(WORDS[2], [WORDS[2], WORDS[4]], [1, 0])]
    np.testing.assert_allclose(data[0].margins, [6, -2])
