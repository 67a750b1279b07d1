"""Put a trained student into the package as one of the rankers that ship: fp16 weights and an int8 graph.

    python experiments/second_run/ship.py STUDENT NAME CARD TABLES [--max-length 512]

STUDENT is a Hugging Face folder, NAME what people will call it, CARD its model card in Markdown, TABLES what
`prepare.py` wrote: 40 development queries of each set with BM25's first ten documents are the export's gate, and the
probabilities are calibrated against their grades. Fails where int8 is refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from common import Work
from safetensors.numpy import load_file, save_file

from inranker import Reranker
from inranker.export import export_model
from inranker.sequence import ModelSettings
from inranker.store import read_json, write_json
from inranker.train.calibration import fit_affine

WEIGHTS = Path(__file__).parents[2] / "src" / "inranker" / "models" / "weights"
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


QUERIES, DEPTH = slice(60, 100), 10  # of each development set


def development_pairs(tables: Path) -> list[tuple[str, str, int]]:
    """Query, document, grade."""
    w = Work(tables, tables)
    contents, qrels = w.contents(), read_json(tables / "dev_qrels.json")
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in w.rows("scored"):
        by_set.setdefault(row["set"], []).append(row)
    return [
        (row["text"], contents[f"{row['corpus']}/{d}"], qrels[name].get(row["id"], {}).get(d, 0))
        for name, rows in by_set.items()
        if name in qrels
        for row in rows[QUERIES]
        for d in row["documents"][:DEPTH]
    ]


def main(student: Path, name: str, card: Path, tables: Path, max_length: int) -> None:
    """Write the folder."""
    target = WEIGHTS / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in FILES:
        if (student / file).is_file():
            shutil.copy(student / file, target / file)
    config = read_json(target / "config.json")
    config.pop("_name_or_path", None)
    write_json(target / "config.json", {**config, "dtype": "float16"})
    weights = {k: v.astype(np.float16) for k, v in load_file(student / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    rows = development_pairs(tables)
    asked = [(query, document) for query, document, _ in rows]
    settings = replace(ModelSettings.read(target) or ModelSettings(), max_length=max_length, calibration=None)
    settings.write(target)
    with Reranker.load(target, "torch", precision="fp32") as ranker:
        grades = np.array([float(grade > 0) for *_, grade in rows])
        replace(settings, calibration=fit_affine(ranker.scores(asked), grades)).write(target)
    with tempfile.TemporaryDirectory() as temporary:
        # From the fp16 weights: what ships is what is checked.
        report = export_model(target, temporary, pairs=asked)
        if "refused" in report["int8"]:
            sys.exit(report["int8"]["refused"])
        (target / "onnx").mkdir()
        for file in ("onnx/model_int8.onnx", "gate.json"):
            shutil.copy(Path(temporary) / file, target / file)
    shutil.copy(card, target / "README.md")
    sizes = {p.relative_to(target).as_posix(): p.stat().st_size for p in sorted(target.rglob("*")) if p.is_file()}
    sys.stdout.write(json.dumps({"int8": report["int8"], "bytes": sizes}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("name")
    parser.add_argument("card", type=Path)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--max-length", type=int, default=512)
    main(**vars(parser.parse_args()))
