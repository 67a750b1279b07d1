"""Systems over the same queries: means with intervals, tests against a baseline, agreement, gains and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inranker.evaluate.measures import evaluate_run
from inranker.evaluate.significance import bootstrap_interval, holm, paired, paired_randomisation_test
from inranker.types import Qrels, Run

RELIABLE = 0.05


@dataclass(frozen=True)
class Figure:
    """A mean over queries with its 95% bootstrap interval.

    `p` is that of the difference from the baseline, adjusted over the whole table; None for the baseline itself and for
    measures that were not tested.
    """

    mean: float
    low: float
    high: float
    p: float | None = None

    def versus(self, baseline: Figure) -> str:
        """In words: `better`, `worse`, or `no reliable difference`; empty where nothing was tested."""
        if self.p is None:
            return ""
        if self.p >= RELIABLE:
            return "no reliable difference"
        return "better" if self.mean > baseline.mean else "worse"


# system -> measure -> query id -> value
Values = dict[str, dict[str, dict[str, float]]]


def measure_runs(runs: Mapping[str, Run], qrels: Qrels, metrics: Sequence[str]) -> Values:
    """Values of every measure for every run and judged query."""
    return {name: evaluate_run(run, qrels, metrics) for name, run in runs.items()}


def compare(
    values: Mapping[str, Values], baseline: str, metrics: Sequence[str], *, samples: int, seed: int
) -> dict[str, dict[str, dict[str, Figure]]]:
    """Collection -> system -> measure -> figure.

    The first measure is tested against `baseline` by paired randomisation; the p-values of all systems and collections
    are adjusted together (Holm), since people read the table as a whole.

    Args:
        values: collection -> what `measure_runs` gave.
        baseline: the system that the others are tested against.
        metrics: measures, the tested one first.
        samples: bootstrap and permutation samples.
        seed: of both.
    """
    tested = metrics[0]
    raw = {
        f"{collection}\t{system}": paired_randomisation_test(
            *paired(of_system[tested], systems[baseline][tested]), samples=samples, seed=seed
        )
        for collection, systems in values.items()
        for system, of_system in systems.items()
        if system != baseline
    }
    adjusted = holm(raw)
    return {
        collection: {
            system: {
                metric: _figure(
                    list(of_system[metric].values()),
                    adjusted.get(f"{collection}\t{system}") if metric == tested else None,
                    samples,
                    seed,
                )
                for metric in metrics
            }
            for system, of_system in systems.items()
        }
        for collection, systems in values.items()
    }


def _figure(values: Sequence[float], p: float | None, samples: int, seed: int) -> Figure:
    low, high = bootstrap_interval(values, samples=samples, seed=seed)
    return Figure(float(np.mean(values)), low, high, p)


@dataclass(frozen=True)
class Agreement:
    """How far an order is the teacher's.

    `tau` is the mean Kendall tau-b over all candidates, `overlap` the mean share of the teacher's ten best in common.
    """

    tau: float
    overlap: float


def agreement_with(teacher: Run, run: Run) -> Agreement:
    """Agreement of a run with the teacher's run of the same candidates; documents that the run lacks count as last."""
    from inranker.train.agreement import mean_kendall_tau, mean_overlap

    ours, theirs = [], []
    for query, documents in teacher.items():
        if len(documents) < 2:
            continue
        found = {d.document_id: d.score for d in run.get(query, ())}
        last = min(found.values(), default=0.0) - 1.0
        ours.append(np.array([found.get(d.document_id, last) for d in documents]))
        theirs.append(np.array([d.score for d in documents]))
    return Agreement(mean_kendall_tau(ours, theirs), mean_overlap(ours, theirs))


@dataclass(frozen=True)
class Mover:
    """A query whose value changed, with the best documents of both systems (ids)."""

    query: str
    before: float
    after: float
    top_before: list[str]
    top_after: list[str]


def movers(
    before: Mapping[str, float],
    after: Mapping[str, float],
    run_before: Run,
    run_after: Run,
    count: int = 5,
    top: int = 3,
) -> tuple[list[Mover], list[Mover]]:
    """The queries that gained most and those that lost most, the largest change first; no change is neither."""

    def mover(query: str) -> Mover:
        tops = [[d.document_id for d in run.get(query, [])[:top]] for run in (run_before, run_after)]
        return Mover(query, before[query], after[query], *tops)

    order = sorted(before, key=lambda query: (before[query] - after[query], query))
    gained = [mover(q) for q in order if after[q] > before[q]][:count]
    lost = [mover(q) for q in reversed(order) if after[q] < before[q]][:count]
    return gained, lost
