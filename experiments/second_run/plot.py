"""The README's plot, out of the tables: means over collections of what lies between BM25 and the teacher.

python experiments/second_run/plot.py experiments/second_run/results/tables.json docs/images/results.svg
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from inranker.store import read_json

ROWS = {
    "BM25": "BM25",
    "sup-hard": "questions, hard labels",
    "syn-hard": "+ synthetic queries, hard labels",
    "sup-soft": "questions, soft labels",
    "syn-soft": "+ synthetic queries, soft labels",
    "long": "+ more epochs",
    "wide": "+ free labels",
    "deep-soup": "+ long queries: inranker-mini (22.7M)",
    "teacher": "teacher (1.5B)",
}
PANELS = {"seen": "seen corpora (5), never their queries", "unseen": "unseen: TREC DL 2019 and 2020"}
COLOURS = {"BM25": "#8a919c", "teacher": "#d07a1f"}
STUDENT, INK = "#2f6fb5", "#22272e"


def main(tables: Path, target: Path) -> None:
    """Write the plot."""
    regimes: dict[str, Any] = read_json(tables)["figures"]
    figure = Figure(figsize=(9, 3), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, (regime, title) in zip(panels, PANELS.items(), strict=True):
        means = [np.mean([found[name]["mean"] for found in regimes[regime].values()]) for name in ROWS]
        places = range(len(ROWS), 0, -1)
        axis.hlines(places, means[0], means, color="#d5dae1", linewidth=2)
        axis.scatter(means, places, color=[COLOURS.get(name, STUDENT) for name in ROWS], s=45, zorder=2)
        for mean, place in zip(means, places, strict=True):
            axis.annotate(
                f"{mean:.3f}".lstrip("0"), (mean, place), (0, 6), textcoords="offset points", fontsize=8, ha="center"
            )
        axis.set_yticks(list(places), list(ROWS.values()), fontsize=9, color=INK)
        axis.set_title(f"nDCG@10, {title}", fontsize=9, color=INK, loc="left")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=9, length=0)
        axis.set_ylim(0.5, len(ROWS) + 0.8)
    # A fixed salt and no date: the same figures give the same bytes.
    with rc_context({"svg.hashsalt": "inranker"}):
        figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
