"""Teachers and the label store."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from inranker.errors import InputError, InRankerError, ModelError
from inranker.label import LabelStore, label_candidates, load_teacher, read_labels
from inranker.label.ensemble import EnsembleTeacher
from inranker.label.stage import label_pairs
from inranker.recipe import LabelSettings, TeacherSettings
from inranker.sequence_causal import CausalSequences
from inranker.types import Pair

PAIRS = [Pair("kaban", "kaban lodel mifir"), Pair("pehus", "lodel " * 20), Pair("kaban", "rajam"), Pair("sigol mi", "")]


class Counting:
    """A teacher that says how long the texts are, and counts what it was asked."""

    name = "counting"
    fingerprint = "c" * 64

    def __init__(self, bad: str | None = None):
        self.asked, self.bad = 0, bad

    def logits(self, pairs):
        self.asked += len(pairs)
        rows = [(-len(q), np.nan if d == self.bad else len(d)) for q, d in pairs]
        return np.array(rows, dtype=np.float32)


def test_causal_logits_are_those_of_the_whole_vocabulary(tiny_causal):
    teacher = load_teacher(TeacherSettings(kind="causal", model=str(tiny_causal), max_length=256, batch_tokens=300))
    model = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    answers = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" false", " true")]
    for pair, row in zip(PAIRS, teacher.logits(PAIRS), strict=True):
        text = f"Query: {pair.query}\nDocument: {pair.document}\nRelevant:"
        with torch.inference_mode():
            logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, -1]
        np.testing.assert_allclose(row, logits[answers], atol=1e-4)


def test_query_likelihood_is_the_mean_log_probability_of_the_query(tiny_causal):
    teacher = load_teacher(TeacherSettings(kind="query-likelihood", model=str(tiny_causal), max_length=256))
    model = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    for pair, row in zip(PAIRS, teacher.logits(PAIRS), strict=True):
        before = teacher.TEMPLATE.format(document=pair.document, query="").rstrip()
        whole = tokenizer(f"{before} {pair.query}", return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        with torch.inference_mode():
            log_probabilities = model(whole).logits[0].log_softmax(-1)
        expected = log_probabilities[range(start - 1, whole.shape[1] - 1), whole[0, start:]].mean().item()
        assert row[1] - row[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["causal", "query-likelihood", "cross-encoder", "bi-encoder"])
def test_a_label_does_not_depend_on_batch_mates(kind, tiny_causal, tiny_encoder):
    model = tiny_causal if kind in ("causal", "query-likelihood") else tiny_encoder
    teacher = load_teacher(TeacherSettings(kind=kind, model=str(model), max_length=128))
    together = teacher.logits(PAIRS)
    assert together.shape == (len(PAIRS), 2) and together.dtype == np.float32
    alone = np.concatenate([teacher.logits([pair]) for pair in PAIRS])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(teacher.logits(PAIRS[::-1])[::-1], together, atol=1e-4)


def test_a_one_logit_cross_encoder_gives_halves(tiny_encoder):
    teacher = load_teacher(TeacherSettings(kind="cross-encoder", model=str(tiny_encoder), max_length=64))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    inputs = tokenizer(*PAIRS[0], return_tensors="pt")
    expected = model(**inputs).logits.item()
    np.testing.assert_allclose(teacher.logits(PAIRS[:1])[0], [-expected / 2, expected / 2], atol=1e-5)


def test_an_int8_cross_encoder_says_nearly_the_same():
    exact, quick = (
        load_teacher(TeacherSettings(kind="cross-encoder", model="inranker-mini", max_length=64, dtype=dtype))
        for dtype in ("float32", "int8")
    )
    pairs = [Pair(query, document) for query, _ in PAIRS for _, document in PAIRS]
    expected, found = (teacher.logits(pairs) for teacher in (exact, quick))
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 0], -found[:, 1])
    spread = expected[:, 1].std()
    np.testing.assert_allclose(found[:, 1], expected[:, 1], atol=0.2 * spread)
    assert not np.array_equal(found, expected) and quick.fingerprint != exact.fingerprint
    np.testing.assert_array_equal(np.concatenate([quick.logits([pair]) for pair in pairs]), found)
    shorter = load_teacher(TeacherSettings(kind="cross-encoder", model="inranker-mini", max_length=32, dtype="int8"))
    assert shorter.fingerprint != quick.fingerprint


def test_int8_needs_an_exported_encoder(tiny_encoder, tiny_t5):
    with pytest.raises(ModelError, match="no int8 file: `inranker export` makes it"):
        load_teacher(TeacherSettings(kind="cross-encoder", model=str(tiny_encoder), dtype="int8"))
    with pytest.raises(ModelError, match="seq2seq"):
        load_teacher(TeacherSettings(kind="cross-encoder", model=str(tiny_t5("v1.0")), dtype="int8"))


def test_causal_sequences_always_keep_their_closing_tokens(tiny_causal):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    sequences = CausalSequences(tokenizer, max_length=64)
    closing = tokenizer("\nRelevant:", add_special_tokens=False)["input_ids"]
    for query, document in [("q", "d" * 500), ("q" * 500, "d" * 500), ("q" * 500, ""), ("", "")]:
        ids = sequences.pairs([(query, document)])[0]
        assert len(ids) <= 64 and ids[-len(closing) :] == closing
    assert sequences.truncated_queries == 2


def test_a_template_without_its_fields_is_refused(tiny_causal):
    with pytest.raises(InputError, match="once each"):
        CausalSequences(AutoTokenizer.from_pretrained(tiny_causal), "Query: {query}")


def test_a_pair_is_asked_once_ever(tmp_path):
    teacher, store = Counting(), LabelStore(tmp_path)
    first = label_pairs(teacher, [*PAIRS, PAIRS[0]], store)
    assert teacher.asked == len(PAIRS)
    again = label_pairs(teacher, PAIRS[::-1], LabelStore(tmp_path))
    assert teacher.asked == len(PAIRS)
    np.testing.assert_array_equal(first[: len(PAIRS)][::-1], again)


def test_another_teachers_labels_are_not_found(tmp_path):
    store, other = LabelStore(tmp_path), Counting()
    label_pairs(Counting(), PAIRS, store)
    other.fingerprint = "d" * 64
    label_pairs(other, PAIRS, store)
    assert other.asked == len(PAIRS)


def test_a_damaged_segment_costs_time_and_nothing_else(tmp_path):
    label_pairs(Counting(), PAIRS, LabelStore(tmp_path))
    segment = next(tmp_path.rglob("*.parquet"))
    segment.write_bytes(segment.read_bytes()[:40])
    teacher = Counting()
    logits = label_pairs(teacher, PAIRS, LabelStore(tmp_path))
    assert teacher.asked == len(PAIRS) and np.isfinite(logits).all()


def test_a_nan_is_an_error_that_names_the_query(tmp_path):
    with pytest.raises(InRankerError, match="sigol mi"):
        label_pairs(Counting(bad=""), PAIRS, LabelStore(tmp_path))


def test_an_ensemble_is_the_mean_of_standardised_margins_and_stores_its_members(tmp_path):
    members = [Counting(), Counting()]
    members[1].fingerprint = "d" * 64
    members[1].logits = lambda pairs: np.array([(0.0, 10.0 * len(d) + 3) for _, d in pairs], dtype=np.float32)
    ensemble = EnsembleTeacher(members)
    ensemble.fit([m.logits(PAIRS) for m in members])
    expected = label_pairs(ensemble, PAIRS, LabelStore(tmp_path))
    margins = [m[:, 1] - m[:, 0] for m in (member.logits(PAIRS) for member in members)]
    standard = np.mean([(m - m.mean()) / m.std() for m in margins], axis=0)
    np.testing.assert_allclose(
        expected[:, 1] - expected[:, 0], standard * margins[0].std() + margins[0].mean(), rtol=1e-4
    )
    assert {p.parent.name for p in tmp_path.rglob("*.parquet")} == {"c" * 32, "d" * 32}
    before = ensemble.fingerprint
    ensemble.fit([m.logits(PAIRS[:2]) for m in members])
    assert ensemble.fingerprint != before


def test_the_stage_writes_labels_and_goes_on_where_it_stopped(tmp_path):
    queries = {f"q{i}": f"query {i}" for i in range(5)}
    contents = {f"d{i}": f"document {i}" for i in range(8)}
    candidates = {q: list(contents) for q in queries}
    teacher = Counting()

    def stop(done, seen=[0]):  # noqa: B006
        seen[0] += done
        if seen[0] >= 20:
            raise KeyboardInterrupt

    arguments = (queries, candidates, contents, tmp_path / "label")
    with pytest.raises(KeyboardInterrupt):
        label_candidates(teacher, *arguments, LabelStore(tmp_path / "a"), LabelSettings(shard_size=10), progress=stop)
    path = label_candidates(teacher, *arguments, LabelStore(tmp_path / "b"), LabelSettings(shard_size=10))
    assert teacher.asked == 40  # The second store is empty: it is the finished shards that were not asked again.
    labels = read_labels(path, teacher.fingerprint)
    assert {q: [row.document_id for row in rows] for q, rows in labels.items()} == candidates
    assert labels["q3"][2].true_logit == len("document 2")
    with pytest.raises(InputError, match="another teacher"):
        read_labels(path, "e" * 64)
