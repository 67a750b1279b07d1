"""monoT5 as a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import WORDS
from inranker.errors import ModelError
from inranker.label import load_teacher
from inranker.recipe import TeacherSettings
from inranker.sequence_t5 import T5Legacy, T5Strict
from inranker.t5.model import load_t5
from inranker.types import Pair

PAIRS = [Pair(WORDS[i], " ".join(WORDS[i : i + n])) for i, n in [(0, 3), (4, 40), (9, 1), (2, 17)]]


def settings(folder: Path, **more: object) -> TeacherSettings:
    return TeacherSettings(kind="seq2seq", model=str(folder), max_length=40, **more)


@pytest.mark.parametrize("variant", ["v1.0", "mt5"])
@pytest.mark.parametrize("mode", ["legacy", "strict"])
def test_logits_are_those_of_the_model(tiny_t5: Callable[[str], Path], variant: str, mode: str) -> None:
    teacher = load_teacher(settings(tiny_t5(variant), mode=mode, dtype="float32", batch_tokens=64))
    module, tokenizer, _ = load_t5(tiny_t5(variant))
    builder = {"legacy": T5Legacy, "strict": T5Strict}[mode](tokenizer, 40)
    with torch.no_grad():
        rows = [torch.tensor([s.input_ids]) for s in builder.pairs(PAIRS)]
        expected = torch.cat([module.eval().logits(row, torch.ones_like(row)) for row in rows])
    logits = teacher.logits(PAIRS)
    assert logits.dtype == np.float32 and logits.shape == (4, 2)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_released_weights_are_fed_in_legacy_mode(tiny_t5: Callable[[str], Path]) -> None:
    folder = tiny_t5("v1.0")
    default, legacy, strict = (load_teacher(settings(folder, mode=m)) for m in (None, "legacy", "strict"))
    long = [Pair(WORDS[0], " ".join(WORDS))]
    np.testing.assert_array_equal(default.logits(long), legacy.logits(long))
    assert np.abs(default.logits(long) - strict.logits(long)).max() > 1e-3
    assert default.fingerprint == legacy.fingerprint != strict.fingerprint


def test_fingerprint_follows_weights(tiny_t5: Callable[[str], Path]) -> None:
    assert load_teacher(settings(tiny_t5("v1.0"))).fingerprint != load_teacher(settings(tiny_t5("v1.1"))).fingerprint


def test_other_folders_are_refused(tiny_encoder: Path) -> None:
    with pytest.raises(ModelError, match="no T5"):
        load_teacher(settings(tiny_encoder))
