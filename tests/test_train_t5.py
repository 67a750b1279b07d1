"""T5 students in the training room."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from conftest import WORDS
from inranker import Reranker
from inranker.recipe import StudentSettings
from inranker.sequence import ModelSettings
from inranker.sequence_t5 import T5Strict
from inranker.train.card import write_card
from inranker.train.stage import PhaseResult
from inranker.train.students import build_start, load_student


@pytest.mark.parametrize("variant", ["v1.0", "v1.1", "mt5"])
def test_a_student_folder_opens_everywhere(tiny_t5: Callable[[str], Path], tmp_path: Path, variant: str) -> None:
    settings = StudentSettings(kind="t5", start=str(tiny_t5(variant)), max_length=64)
    folder = build_start(settings, tmp_path / "start", seed=0)
    kept = ModelSettings.read(folder)
    assert kept is not None and (kept.architecture, kept.mode, kept.max_length) == ("t5", "strict", 64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens([kept.false_token, kept.true_token])[1] in ("▁true", "▁yes")

    student = load_student(folder)
    assert isinstance(student.sequences, T5Strict) and student.sequences.max_length == 64
    sequence = student.sequences.pairs([(WORDS[0], " ".join(WORDS[:9]))])[0].input_ids
    assert sequence == tokenizer(f"Query: {WORDS[0]} Document: {' '.join(WORDS[:9])} Relevant:")["input_ids"]
    ids = torch.tensor([sequence])
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        margin = student.module.eval()(ids, torch.ones_like(ids), None)
        logits = plain(input_ids=ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0]
    torch.testing.assert_close(margin[0], logits[kept.true_token] - logits[kept.false_token], atol=1e-4, rtol=0)


def snippet(folder: Path) -> str:
    """The code of a card that does without this package, pointed at the folder."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return blocks[1].replace("path/to/this-model", str(folder))


@pytest.mark.parametrize("variant", ["v1.0", "mt5"])
def test_the_card_of_a_student_tells_how_to_score_without_this_package(
    tiny_t5: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    folder = build_start(StudentSettings(kind="t5", start=str(tiny_t5(variant))), tmp_path / "student", seed=0)
    phase = PhaseResult("phase 1 (supervised, soft labels)", 0.1, 0.8, True, folder)
    write_card(folder, "some-start", [phase])
    card = (folder / "README.md").read_text()
    assert "| phase 1 (supervised, soft labels) | 0.100 | 0.800 | yes |" in card and "`some-start`" in card
    assert str(tmp_path) not in card
    names: dict[str, object] = {}
    exec(snippet(folder), names)
    with Reranker.load(folder, "torch") as ranker:
        expected = ranker.scores([(names["query"], names["document"])])[0]
    assert names["margin"] == pytest.approx(expected, abs=1e-4)
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "text-ranking"


def test_the_card_of_an_encoder_does_so_too(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = build_start(StudentSettings(start=str(tiny_encoder)), tmp_path / "student", seed=0)
    write_card(folder, "some-start", [])
    names: dict[str, object] = {}
    exec(snippet(folder), names)
    with Reranker.load(folder, "torch") as ranker:
        assert names["margin"] == pytest.approx(ranker.scores([(names["query"], names["document"])])[0], abs=1e-4)
