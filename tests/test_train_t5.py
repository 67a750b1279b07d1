"""T5 students in the training room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from conftest import WORDS
from inranker.recipe import StudentSettings
from inranker.sequence import ModelSettings
from inranker.sequence_t5 import T5Strict
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
