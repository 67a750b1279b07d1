"""Effectiveness measures by name, computed by ir_measures (trec_eval's code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inranker.errors import InputError, require
from inranker.retrieve.trec import sort_documents
from inranker.types import Qrels, Run

DEFAULT_METRICS = ("nDCG@10", "RR@10", "AP", "R@100")


def evaluate_run(run: Run, qrels: Qrels, metrics: Sequence[str] = DEFAULT_METRICS) -> dict[str, dict[str, float]]:
    """Measure -> query id -> value, for every judged query; one that the run lacks counts zero.

    Args:
        run: documents with scores; their order is taken from the scores alone, ties by document id, descending.
        qrels: judgements.
        metrics: names in ir_measures' grammar: `nDCG@10`, `RR@10`, `AP`, `R(rel=2)@100`, …

    Raises:
        InputError: no such measure, or no query of the run is judged.
    """
    ir_measures = require("ir_measures", "distill")
    measures = _parse(metrics)
    if not run.keys() & qrels.keys():
        raise InputError("no query of the run is judged; are run and judgements of one collection?")
    # Ranks in place of scores: the measures' providers do not break ties alike, and see none this way.
    scores = {
        query_id: {document.document_id: -rank for rank, document in enumerate(sort_documents(run.get(query_id, ())))}
        for query_id in qrels
    }
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    names: dict[object, list[str]] = {}
    for name, measure in measures.items():
        names.setdefault(measure, []).append(name)
    for metric in ir_measures.iter_calc(list(names), qrels, scores):
        for name in names[metric.measure]:
            values[name][metric.query_id] = float(metric.value)
    return values


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over queries of each measure."""
    return {name: sum(by_query.values()) / len(by_query) for name, by_query in values.items()}


def check_measures(metrics: Sequence[str]) -> None:
    """See before long work that all measures are known.

    Raises:
        InputError: one is not.
    """
    _parse(metrics)


def _parse(metrics: Sequence[str]) -> dict[str, object]:
    ir_measures = require("ir_measures", "distill")
    measures = {}
    for name in metrics:
        try:
            measures[name] = ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError, KeyError, AttributeError, TypeError):
            raise InputError(f"unknown measure {name!r}; for example {', '.join(DEFAULT_METRICS)}") from None
    return measures
