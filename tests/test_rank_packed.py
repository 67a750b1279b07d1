from __future__ import annotations

import numpy as np
import pytest

from inranker.rank.folder import ModelFolder
from inranker.rank.reranker import Reranker
from inranker.rank.torch_backend import TorchBackend

DOCUMENTS = ["kaban lodel", "mifir " * 200, "", "x", "nugol pehus rajam siban", "to " * 30]
PAIRS = [(q, d) for q in ("kaban", "lodel mifir nugol", "") for d in DOCUMENTS]


@pytest.fixture(scope="module", params=[64, 100_000], ids=["many batches", "one batch"])
def rankers(request, tiny_encoder):
    folder = ModelFolder.open(tiny_encoder)
    both = [
        Reranker(folder, folder.sequences(), TorchBackend(folder, "fp32", batch_tokens=request.param, packed=packed))
        for packed in (True, False)
    ]
    yield both
    for ranker in both:
        ranker.close()


def test_packed_and_padded_scores_agree(rankers):
    packed, padded = rankers
    np.testing.assert_allclose(packed.scores(PAIRS), padded.scores(PAIRS), atol=1e-4)


def test_packed_windows_agree(rankers):
    packed, padded = rankers
    np.testing.assert_allclose(packed.scores(PAIRS, passages="max"), padded.scores(PAIRS, passages="max"), atol=1e-4)


def test_sequences_built_on_the_host_and_on_the_device_agree(rankers):
    packed, _ = rankers
    sequences = packed.sequences.pairs(PAIRS)
    np.testing.assert_allclose(packed.backend.margins(sequences), packed.scores(PAIRS), atol=1e-5)


def test_a_pair_alone_scores_as_among_others(rankers):
    packed, _ = rankers
    alone = np.concatenate([packed.scores([pair]) for pair in PAIRS])
    np.testing.assert_allclose(packed.scores(PAIRS), alone, atol=1e-4)
