"""The whole chain with real models: SmolLM2 writes queries, MiniLM teaches, two layers of it learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inranker.errors import ModelError
from inranker.models import resolve
from inranker.pipeline import distill
from inranker.recipe import parse_recipe
from inranker.store import read_json, read_parquet

ADI = Path(__file__).parents[2] / "shared" / "data" / "adi"
TOPICS = {
    "bread": "Bread is baked from flour, water, salt and yeast; the dough must rise for hours before baking.",
    "glacier": "A glacier is a body of ice that moves slowly downhill under its own weight, and carves valleys.",
    "violin": "The violin has four strings tuned in fifths, and is played with a bow of horse hair.",
    "bees": "Honey bees tell each other where flowers are by a dance whose angle gives the direction to the sun.",
    "tides": "Tides rise and fall twice a day because the pull of the moon differs between the near and the far side.",
    "chess": "In chess the king is in check when an enemy piece attacks it; checkmate ends the game at once.",
    "rust": "Iron rusts when it meets oxygen and water; salt makes it faster, and a coat of paint or zinc slows it.",
    "maps": "A Mercator map keeps angles but makes lands near the poles look far larger than they are.",
}


def made_collection(folder: Path) -> Path:
    """A BEIR folder of our own sentences, for where the development data is not."""
    (folder / "qrels").mkdir(parents=True)
    lines, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for number, (topic, text) in enumerate(TOPICS.items()):
        for part, sentence in enumerate((text, f"More on {topic}. {text.split(';')[0].split(',')[0]}.")):
            lines.append(json.dumps({"_id": f"{topic}{part}", "title": topic, "text": sentence}))
        queries.append(json.dumps({"_id": f"q{number}", "text": " ".join(text.split()[:6])}))
        qrels.append(f"q{number}\t{topic}0\t1")
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n")
    return folder


@pytest.mark.real
def test_a_real_run(tmp_path):
    try:
        for name in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
            resolve(name)
    except ModelError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
    collection = ADI if ADI.is_dir() else made_collection(tmp_path / "made")
    recipe = parse_recipe(
        {
            "name": "real",
            "collection": {"source": str(collection)},
            "generate": {"documents": 40, "document_tokens": 96, "max_new_tokens": 24, "shard_size": 20},
            "negatives": {"count": 9, "hard": 4, "depth": 60},
            "teacher": {"kind": "bi-encoder", "model": "all-minilm-l6-v2", "max_length": 128},
            "label": {"store": str(tmp_path / "labels")},
            "student": {"start": "all-minilm-l6-v2", "layers": [0, 5], "max_length": 128},
            "train": {
                "phases": [
                    {"data": "synthetic", "loss": "margin_mse", "scale": 10, "learning_rate": 5e-4, "epochs": 6,
                     "queries_per_batch": 8}
                ]
            },
            "evaluate": {"depth": 30, "samples": 1000},
        }
    )  # fmt: skip
    distill(recipe, tmp_path / "run")
    queries = read_parquet(tmp_path / "run" / "generate" / "kept.parquet").to_pylist()
    assert len(queries) >= 0.5 * min(40, len(TOPICS) * 2)
    assert all(len(q["text"].split()) >= 2 and q["log_probability"] < 0 for q in queries)
    metrics = read_json(tmp_path / "run" / "evaluate" / "metrics.json")
    figures = metrics["collections"][0]["figures"]
    # A sane first stage and a sane teacher; and the student learnt something of its teacher's order.
    assert figures["BM25"]["nDCG@10"]["mean"] > 0.4 and figures["teacher"]["nDCG@10"]["mean"] > 0.4
    losses = [entry["loss"] for entry in metrics["training"][0]["history"] if "loss" in entry]
    quarter = len(losses) // 4
    assert sum(losses[-quarter:]) < 0.9 * sum(losses[:quarter])
    agreement = metrics["collections"][0]["agreement"]
    assert agreement["student, after phase 1"]["tau"] > agreement["student, undistilled"]["tau"]
