"""The gate before int8: how far its rankings may be from fp32's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_QUERIES = 50
MIN_KENDALL = 0.95
MAX_NDCG_DIFFERENCE = 0.005


@dataclass(frozen=True)
class Gate:
    """Agreement of int8 with fp32 over queries with at least two candidates.

    Attributes:
        queries, pairs: how many were compared.
        kendall: mean over queries of Kendall's tau-b between the two rankings; `kendall_lowest` the lowest.
        ndcg_difference: mean nDCG@10 of fp32 less int8's; without judgements fp32's first ten are the gains, 10 to 1.
        margin_difference: largest difference of a margin; `margin_spread` the mean standard deviation within a query.
    """

    queries: int
    pairs: int
    kendall: float
    kendall_lowest: float
    ndcg_difference: float
    judged: bool
    margin_difference: float
    margin_spread: float

    @property
    def refused(self) -> str | None:
        """Why int8 may not be used, with the figures, or None where it may."""
        if self.queries < MIN_QUERIES:
            return f"{self.queries} queries with candidates are too few to judge it; the gate needs {MIN_QUERIES}"
        if self.kendall < MIN_KENDALL:
            return f"mean Kendall tau to fp32 is {self.kendall:.4f} in {self.queries} queries; the gate: {MIN_KENDALL}"
        if self.ndcg_difference > MAX_NDCG_DIFFERENCE:
            return (
                f"nDCG@10 is {self.ndcg_difference:.4f} lower than fp32's over {self.queries} queries; "
                f"the gate is {MAX_NDCG_DIFFERENCE}"
            )
        return None

    def report(self) -> dict[str, Any]:
        """What goes into `gate.json`; key `refused` only where it was."""
        return {**asdict(self), **({"refused": self.refused} if self.refused else {})}


def measure_gate(
    queries: Sequence[str],
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    gains: Sequence[float] | None = None,
) -> Gate:
    """Compare two scorings of the same pairs.

    Args:
        queries: the query of each pair, [n].
        reference: margins in fp32, [n].
        candidate: margins in int8, [n].
        gains: judgements of the pairs, [n].
    """
    groups: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        groups.setdefault(query, []).append(place)
    judged = None if gains is None else np.asarray(gains, dtype=np.float64)
    taus, lost, spreads = [], [], []
    for places in (np.array(p) for p in groups.values() if len(p) > 1):
        a, b = reference[places], candidate[places]
        taus.append(kendall_tau(a, b))
        mine = _first_ten(a) if judged is None else judged[places]
        lost.append(ndcg(mine, a) - ndcg(mine, b))
        spreads.append(float(a.std()))
    return Gate(
        queries=len(taus),
        pairs=len(reference),
        kendall=round(float(np.mean(taus)), 6) if taus else 0.0,
        kendall_lowest=round(float(np.min(taus)), 6) if taus else 0.0,
        ndcg_difference=round(float(np.mean(lost)), 6) if lost else 0.0,
        judged=judged is not None,
        margin_difference=round(float(np.abs(reference - candidate).max()), 6) if len(reference) else 0.0,
        margin_spread=round(float(np.mean(spreads)), 6) if spreads else 0.0,
    )


def kendall_tau(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Kendall's tau-b of two score lists; 1 where both are constant, 0 where one is."""
    above = np.triu_indices(len(a), 1)
    x, y = (np.sign(v[:, None] - v[None, :])[above] for v in (a, b))
    known = np.sqrt(np.count_nonzero(x) * np.count_nonzero(y))
    if not known:
        return float(np.count_nonzero(x) == np.count_nonzero(y))
    return float((x * y).sum() / known)


def ndcg(gains: NDArray[np.floating], scores: NDArray[np.floating], depth: int = 10) -> float:
    """Normalised DCG with linear gains (Järvelin and Kekäläinen 2002), 1 where no document has a gain."""
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    best = np.sort(gains)[::-1][:depth]
    found = gains[np.argsort(-scores, kind="stable")[:depth]]
    ideal = float((best * discounts[: len(best)]).sum())
    return float((found * discounts[: len(found)]).sum()) / ideal if ideal > 0 else 1.0


def _first_ten(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    gains = np.zeros(len(scores))
    first = np.argsort(-scores, kind="stable")[:10]
    gains[first] = np.arange(10, 10 - len(first), -1)
    return gains
