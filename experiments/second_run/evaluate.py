"""The tables of the second run, out of the scores that came home and of the judgements, which are read once, here.

    python experiments/second_run/evaluate.py HOME TABLES DATA OUT

HOME holds `scores-*.parquet`, TABLES what `prepare.py` wrote (what was scored, BM25's scores, development judgements),
DATA the collections. OUT gets `tables.md` and `tables.json`; every use of test judgements is a line of `test-use.jsonl`
there. Nothing is chosen here but the weights of fusion, on development queries.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inranker.collection import read_collection
from inranker.evaluate import bootstrap_interval, choose_weight, evaluate_run, fuse, holm, paired_randomisation_test
from inranker.evaluate.comparison import Figure, compare
from inranker.evaluate.significance import paired
from inranker.recipe import CollectionSettings
from inranker.retrieve import sort_documents
from inranker.store import atomic_write, file_fingerprint, fingerprint, read_json, read_parquet, write_json
from inranker.types import Qrels, Run

METRIC = "nDCG@10"
SEEN = ["scifact", "cranfield", "cisi", "medline", "stackx_beer"]  # the last two are no headline: few, or half
HEADLINE = ["scifact", "cranfield", "cisi"]
POOLS = ["dl19_pool", "dl20_pool"]
CELLS = {
    "sup-hard": "questions, hard labels",
    "sup-soft": "questions, soft labels",
    "syn-hard": "and synthetic queries, hard labels",
    "syn-soft": "and synthetic queries, soft labels",
}
SHIPPED = "deep-soup"  # the student that ships as `inranker-mini`
FOLDED = {"fold": "long", "deep": "deep"}  # names of folds -> the recipe that they are of
FOLDS = {"a": ["cranfield", "medline", "stackx_beer"], "b": ["scifact", "cisi"]}  # where each is measured
# A fold's share in its fusion comes from a corpus that it has not seen either.
UNSEEN_DEVELOPMENT = {f"{name}-{half}": [s] for name in FOLDED for half, s in (("a", "dev_beer"), ("b", "dev_scifact"))}
ENDS = ("", " + BM25", " + encoder + BM25")

Values = dict[str, dict[str, float]]  # collection -> query -> value


class Scores:
    """The score files: system -> seed -> set -> run, BM25's and the teacher's among them."""

    def __init__(self, home: Path, tables: Path) -> None:
        self._scored = read_parquet(tables / "scored.parquet").to_pylist()
        self.files = sorted(home.glob("scores-*.parquet"))
        self.int8: dict[str, Run] = {}
        self.systems: dict[str, dict[str, dict[str, Run]]] = {"BM25": {"1": self._runs({})}}
        margins = {path.stem.removeprefix("scores-"): self._margins(path) for path in self.files}
        for name, found in margins.items():
            if match := re.fullmatch(r"(.+)-(\d+)", name):
                self.systems.setdefault(match[1], {})[match[2]] = self._runs(found)
        if "int8" in margins:
            self.int8 = self._runs(margins["int8"])
        if "minilm" in margins:
            self.systems["minilm"] = {"1": self._runs(margins["minilm"])}
        halves = [margins.get(f"teacher-test{n}") for n in (0, 1)]
        if all(halves) and "minilm" in margins:
            teacher = {**halves[0], **halves[1]}  # type: ignore[dict-item]
            self.systems["teacher alone"] = {"1": self._runs(teacher)}
            chosen = read_json(home / "chosen.json")
            lexical = {(r["set"], r["id"]): np.array(r["bm25"]) / max(*r["bm25"], 1e-9) for r in self._scored}
            labels = {
                key: m + chosen["cosine"] * margins["minilm"][key] + chosen["bm25"] * lexical[key]
                for key, m in teacher.items()
            }
            self.systems["teacher"] = {"1": self._runs(labels)}

    def _margins(self, path: Path) -> dict[tuple[str, str], np.ndarray]:
        return {(r["set"], r["id"]): np.array(r["margins"]) for r in read_parquet(path).to_pylist()}

    def _runs(self, margins: dict[tuple[str, str], np.ndarray]) -> dict[str, Run]:
        """BM25's own runs where there are no margins."""
        runs: dict[str, Run] = {}
        for row in self._scored:
            key = row["set"], row["id"]
            if not margins or key in margins:
                scores = margins[key] if margins else row["bm25"]
                runs.setdefault(row["set"], {})[row["id"]] = sort_documents(zip(row["documents"], scores, strict=False))
        return runs

    def queries(self, name: str) -> set[str]:
        """Ids of a set's queries."""
        return {r["id"] for r in self._scored if r["set"] == name}


def add_fusion(scores: Scores, development: dict[str, Qrels]) -> dict[str, float]:
    """Fusions of all systems that have scores of the development queries; returns the systems' shares.

    With BM25, and with what costs no second model a pair: BM25 and the sentence encoder's cosines together.
    """
    # Sets have ids in common: one run of all needs both in a name.
    judged = ((s, q, grades) for s, found in development.items() for q, grades in found.items())
    qrels = {f"{s} {q}": grades for s, q, grades in judged if any(grades.values())}
    shares = {}

    def joined(runs: dict[str, Run], sets: Iterable[str]) -> Run:
        return {f"{s} {q}": found for s in sets for q, found in runs.get(s, {}).items()}

    def add(stage: str, end: str, names: Iterable[str]) -> None:
        first = scores.systems[stage]["1"]
        for name in names:
            seeds, sets = scores.systems[name], UNSEEN_DEVELOPMENT.get(name, list(development))
            own = joined(seeds[min(seeds)], sets)
            if own.keys() & qrels.keys():
                asked = {q: grades for q, grades in qrels.items() if q in own}
                shares[name + end] = share = choose_weight(joined(first, sets), own, asked, METRIC)
                scores.systems[name + end] = {
                    seed: {s: fuse(first[s], run, share) for s, run in runs.items()} for seed, runs in seeds.items()
                }

    alone = [name for name in scores.systems if name != "BM25"]
    add("BM25", ENDS[1], alone)
    if f"minilm{ENDS[1]}" in scores.systems:
        add(f"minilm{ENDS[1]}", ENDS[2], [name for name in alone if name != "minilm"])
    return shares


def judgements(data: Path, scores: Scores, log: Path) -> dict[str, Qrels]:
    """Set -> judgements of its queries. The one place where test judgements are read; each use is written down."""
    digest = fingerprint([(p.name, file_fingerprint(p)) for p in scores.files])
    lines = log.read_text().splitlines() if log.exists() else []
    again = sum(json.loads(line)["scores"] == digest for line in lines)
    entry = {"when": time.strftime("%Y-%m-%d %H:%M"), "scores": digest, "use": again + 1, "systems": [*scores.systems]}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    qrels = {}
    for name in [*SEEN, *POOLS]:
        asked = scores.queries(name)
        found = read_collection(CollectionSettings(source=str(data / name))).qrels
        qrels[name] = {q: grades for q, grades in found.items() if q in asked}
    return qrels


def measure(scores: Scores, qrels: dict[str, Qrels]) -> dict[str, dict[str, Values]]:
    """System -> seed -> collection -> query -> nDCG@10, every judged query counted."""
    return {
        name: {
            seed: {s: evaluate_run(runs[s], qrels[s], [METRIC])[METRIC] for s in qrels if s in runs}
            for seed, runs in seeds.items()
        }
        for name, seeds in scores.systems.items()
    }


def int8_loss(scores: Scores, qrels: dict[str, Qrels], values: Values, samples: int) -> dict[str, Any]:
    """Collection -> what the shipped ranker's int8 graph gains over its own scores of the GPU, where both are there."""
    found = {}
    for name, run in scores.int8.items():
        judged = {q: grades for q, grades in qrels[name].items() if q in run}
        own = evaluate_run(run, judged, [METRIC])[METRIC]
        found[name] = {"queries": len(own), "difference": difference(own, {q: values[name][q] for q in own}, samples)}
    return found


def mean_of(seeds: Iterable[Values]) -> Values:
    """The mean over seeds of every query's value."""
    found = list(seeds)
    return {s: {q: float(np.mean([v[s][q] for v in found])) for q in values} for s, values in found[0].items()}


def by_regime(values: dict[str, Values]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Regime -> collection -> system -> values: seen corpora; unseen ones, pools for all and the rest by folds."""
    folds = {f"{name}-{half}{end}" for name in FOLDED for half in FOLDS for end in ENDS}
    plain = {name: v for name, v in values.items() if name not in folds}
    regimes = {
        "seen": {s: {name: v[s] for name, v in plain.items() if s in v} for s in SEEN},
        "unseen": {s: {name: v[s] for name, v in values.items() if s in v} for s in POOLS},
        "unseen, by folds": {
            s: {
                "BM25": values["BM25"][s],
                **{n: values[n][s] for n in ("teacher",) if s in values.get(n, {})},
                **{
                    f"folds of {recipe}{end}": values[f"{name}-{half}{end}"][s]
                    for name, recipe in FOLDED.items()
                    for end in ENDS
                    if f"{name}-{half}{end}" in values
                },
            }
            for half, sets in FOLDS.items()
            for s in sets
        },
    }
    return {name: regime for name, regime in regimes.items() if any(len(v) > 1 for v in regime.values())}


def difference(system: dict[str, float], baseline: dict[str, float], samples: int) -> list[float]:
    """Mean paired difference and its 95% interval."""
    a, b = paired(system, baseline)
    gap = np.asarray(a) - np.asarray(b)
    return [float(gap.mean()), *bootstrap_interval(gap, samples=samples)]


def cells(values: dict[str, Values], seeds: dict[str, dict[str, Values]], samples: int) -> dict[str, Any]:
    """The 2 x 2 on seen corpora: each cell's mean, the range of its seeds, and the last cell against each other one."""
    there = [c for c in CELLS if c in values]

    def mean(v: Values) -> float:
        return float(np.mean([np.mean(list(v[s].values())) for s in SEEN]))

    table = {
        c: {"mean": mean(values[c]), "seeds": sorted(mean(v) for v in seeds[c].values()), "n": len(seeds[c])}
        for c in there
    }
    pooled = {c: np.concatenate([list(values[c][s].values()) for s in SEEN]) for c in there}
    if "syn-soft" in there:
        others = [c for c in there if c != "syn-soft"]
        p = {c: paired_randomisation_test(pooled["syn-soft"], pooled[c], samples=samples) for c in others}
        for c, adjusted in holm(p).items():
            tie = table[c]["seeds"][-1] >= table["syn-soft"]["seeds"][0]
            table[c] |= {"p against synthetic, soft": adjusted, "inside the seeds' range": tie}
    return table


def gain_kept(values: dict[str, Values], sets: Sequence[str]) -> dict[str, float]:
    """System -> (system - BM25) / (teacher - BM25), on means over collections."""
    means = {
        name: np.mean([np.mean(list(v[s].values())) for s in sets])
        for name, v in values.items()
        if all(s in v for s in sets)
    }
    if "teacher" not in means or means["teacher"] == means["BM25"]:
        return {}
    gap = means["teacher"] - means["BM25"]
    return {n: float((m - means["BM25"]) / gap) for n, m in means.items() if n not in ("BM25", "teacher")}


def markdown(figures: dict[str, dict[str, dict[str, Figure]]], names: dict[str, str]) -> list[str]:
    """One regime's table: mean [95% interval], a star where the difference to BM25 holds after Holm."""
    sets = list(figures)
    systems = list(dict.fromkeys(name for found in figures.values() for name in found))
    lines = [f"| | {' | '.join(sets)} | mean |", "|---" * (len(sets) + 2) + "|"]
    for system in systems:
        cells = []
        for s in sets:
            f = figures[s].get(system)
            star = "*" if f and f.p is not None and f.p < 0.05 else ""
            cells.append(f"{f.mean:.3f}{star} [{f.low:.3f}, {f.high:.3f}]" if f else "")
        found = [figures[s][system].mean for s in sets if system in figures[s]]
        mean = f"{np.mean(found):.3f}" if len(found) == len(sets) else ""
        lines.append(f"| {names.get(system, system)} | {' | '.join(cells)} | {mean} |")
    return [*lines, ""]


def main(home: Path, tables: Path, data: Path, out: Path, samples: int = 10_000) -> None:
    """Write the tables."""
    scores = Scores(home, tables)
    shares = add_fusion(scores, read_json(tables / "dev_qrels.json"))
    qrels = judgements(data, scores, out / "test-use.jsonl")
    seeds = measure(scores, qrels)
    values = {name: mean_of(found.values()) for name, found in seeds.items()}
    result: dict[str, Any] = {"fusion: the student's share": shares, "figures": {}, "difference to BM25": {}}
    lines = ["nDCG@10, BM25's top 100 reranked, all queries, the mean over seeds [95% bootstrap interval].", ""]
    lines += ["\\* differs from BM25: paired randomisation, p < .05 adjusted (Holm) over the regime's table.", ""]
    for regime, found in by_regime(values).items():
        as_values = {s: {n: {METRIC: v} for n, v in systems.items()} for s, systems in found.items()}
        figures = compare(as_values, "BM25", [METRIC], samples=samples, seed=0)
        plain = {s: {n: f[METRIC] for n, f in systems.items()} for s, systems in figures.items()}
        lines += [f"## {regime.capitalize()}", "", *markdown(plain, CELLS)]
        result["figures"][regime] = {s: {n: vars(f) for n, f in systems.items()} for s, systems in plain.items()}
        result["difference to BM25"][regime] = {
            s: {n: difference(v, systems["BM25"], samples) for n, v in systems.items() if n != "BM25"}
            for s, systems in found.items()
        }
    if scores.int8:
        result["int8"] = int8_loss(scores, qrels, values[SHIPPED], samples)
    result["cells"] = cells(values, seeds, samples)
    lines += ["## The four cells, seen corpora", "", "| | mean | seeds | p against the last | tie |", "|---" * 5 + "|"]
    for name, cell in result["cells"].items():
        p = cell.get("p against synthetic, soft")
        ends = f"{cell['seeds'][0]:.3f} to {cell['seeds'][-1]:.3f} ({cell['n']})"
        tie = "" if p is None else "yes" if cell["inside the seeds' range"] else "no"
        lines.append(f"| {CELLS[name]} | {cell['mean']:.3f} | {ends} | {'' if p is None else f'{p:.4f}'} | {tie} |")
    groups = {"seen": SEEN, "seen, headline": HEADLINE, "unseen": POOLS}
    result["gain kept"] = {group: gain_kept(values, sets) for group, sets in groups.items()}
    lines += ["", "## Gain kept", "", f"| | {' | '.join(groups)} |", "|---" * (len(groups) + 1) + "|"]
    for name in values:
        kept = [result["gain kept"][g].get(name) for g in groups]
        if any(k is not None for k in kept):
            lines.append(f"| {CELLS.get(name, name)} | {' | '.join('' if k is None else f'{k:.0%}' for k in kept)} |")
    with atomic_write(out / "tables.md") as file:
        file.write("\n".join(lines) + "\n")
    write_json(out / "tables.json", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("home", "tables", "data", "out"):
        parser.add_argument(argument, type=Path)
    main(**vars(parser.parse_args()))
