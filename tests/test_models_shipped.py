"""The rankers that ship: there, small, whole, and rankers."""

from __future__ import annotations

import numpy as np
import pytest

from inranker import Reranker
from inranker.models import resolve
from inranker.models.catalog import SHIPPED
from inranker.rank.native_model import available_instructions
from inranker.store import read_json

MB = 1_000_000
# Bytes of the fp16 weights and of the int8 graph.
LARGEST = {"inranker-mini": (46 * MB, 25 * MB), "inranker-nano": (32 * MB, 18 * MB)}
QUESTIONS = {
    "how do plants make their food": "Photosynthesis turns light, water and carbon dioxide into sugar in green leaves.",
    "what is the capital of france": "Paris lies on the Seine and is the seat of the French government.",
    "how can I cancel my subscription": "To end your plan, open the account page and choose stop renewing.",
    "why is the sky blue": "Air scatters short wavelengths of sunlight more than long ones, so we see blue above us.",
    "symptoms of a cold": "A runny nose, a sore throat and coughing are usual signs of an infection of the airways.",
}


@pytest.fixture(params=sorted(SHIPPED))
def folder(request):
    return resolve(request.param)


def test_it_is_no_larger_than_promised(folder):
    weights, graph = LARGEST[folder.name]
    assert (folder / "model.safetensors").stat().st_size <= weights
    assert (folder / "onnx" / "model_int8.onnx").stat().st_size <= graph


def test_int8_passed_its_gate(folder):
    gate = read_json(folder / "gate.json")["int8"]
    assert "refused" not in gate and gate["kendall"] >= 0.95 and gate["ndcg_difference"] <= 0.005


def test_the_answer_comes_first_and_int8_agrees_with_torch(folder):
    pairs = [(question, answer) for question in QUESTIONS for answer in QUESTIONS.values()]
    with Reranker.load(folder.name) as small, Reranker.load(folder.name, "torch", precision="fp32") as whole:
        backend = "native" if available_instructions() else "onnx"
        assert (small.backend.name, small.backend.precision) == (backend, "int8")
        found, expected = small.scores(pairs).reshape(5, 5), whole.scores(pairs).reshape(5, 5)
        ranked = small.rank("how do plants make their food", list(QUESTIONS.values()))
    assert np.abs(found - expected).max() < 0.1 * expected.std()
    assert (expected.argmax(axis=1) == np.arange(5)).sum() >= 4
    assert ranked[0].index == 0 and 1 > ranked[0].score > 2 * ranked[1].score > 0


def test_its_card_names_its_sources_and_no_place(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "all-MiniLM-L6-v2" in card and "MS MARCO" in card and "licence" in card
    config = (folder / "config.json").read_text(encoding="utf-8")
    assert "/tmp/" not in card + config and "_name_or_path" not in config
