"""The report's plots, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inranker.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#22272e"
_COLOURS = {"bm25": "#8a919c", "student": "#2f6fb5", "teacher": "#d07a1f", "fusion": "#2b9468"}
_STUDENT_SHADES = ("#c3d8ee", "#86b0dc", "#2f6fb5", "#1b4675")


def _canvas(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    # Figure without pyplot: no display, no global state, safe in any thread.
    figure_class = require("matplotlib.figure", "distill").Figure
    figure = figure_class(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#b6bcc6")
        axis.tick_params(colors=_INK, labelsize=9, length=3)
        axis.grid(True, color="#e6e9ee", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    matplotlib = require("matplotlib", "distill")
    buffer = io.BytesIO()
    # A fixed salt and no date: the same figures give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "inranker"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def colours(kinds: Mapping[str, str]) -> dict[str, str]:
    """System -> colour: one a kind, shades from light to dark for the students in the order of their training."""
    students = [name for name, kind in kinds.items() if kind == "student"]
    shades = dict(zip(students, _STUDENT_SHADES[max(0, 3 - len(students)) :], strict=False))
    return {name: shades.get(name, _COLOURS[kind]) for name, kind in kinds.items()}


def plot_effectiveness(collections: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> bytes:
    """Bars of every system's first measure with its interval, one panel a collection."""
    colour = colours(kinds)
    columns = min(len(collections), 3)
    shown = collections[:columns]
    figure, axes = _canvas(9.2 if columns > 1 else 7.2, 0.42 * len(kinds) + 0.9, columns)
    for axis, collection in zip(axes, shown, strict=True):
        names = list(collection["figures"])
        figures = [collection["figures"][name][collection["metric"]] for name in names]
        places = range(len(names))
        axis.barh(places, [f["mean"] for f in figures], color=[colour[n] for n in names], height=0.66)
        errors = [
            [f["mean"] - f["low"] for f in figures],
            [f["high"] - f["mean"] for f in figures],
        ]
        axis.errorbar(
            [f["mean"] for f in figures], places, xerr=errors, fmt="none", ecolor=_INK, elinewidth=1, capsize=3
        )
        axis.set_yticks(places, names if axis is axes[0] else [""] * len(names))
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set_xlim(left=0)
        axis.set_xlabel(f"{collection['metric']}, {collection['name']}", fontsize=9, color=_INK)
    return _svg(figure)


def plot_trade_off(systems: Sequence[Mapping[str, Any]], student: str, collection: Mapping[str, Any]) -> bytes:
    """Effectiveness against speed; the area of a point is its number of parameters, BM25 is the line to beat."""
    metric = collection["metric"]
    colour = colours({s["name"]: s["kind"] for s in systems})
    figure, (axis,) = _canvas(7.2, 3.6)
    # The student's earlier states are as fast and as large as itself: their points would lie on each other.
    timed = [s for s in systems if s["pairs_per_second"] and (s["kind"] != "student" or s["name"] == student)]
    largest = max((s["parameters"] or 1 for s in timed), default=1)
    for baseline in (s["name"] for s in systems if s["kind"] == "bm25"):
        level = collection["figures"][baseline][metric]["mean"]
        axis.axhline(level, color=_COLOURS["bm25"], linewidth=1.4, linestyle="--")
        axis.annotate(baseline, (0.995, level), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      fontsize=8.5, color="#5b626c")  # fmt: skip
    for system in timed:
        value = collection["figures"][system["name"]][metric]["mean"]
        area = 40 + 260 * (system["parameters"] or 1) / largest
        speed = system["pairs_per_second"]
        axis.scatter([speed], [value], s=area, color=colour[system["name"]], edgecolor="white", linewidth=1, zorder=3)
        offset = 17 if system["kind"] == "student" else -17  # however near to each other, the names can be read
        axis.annotate(system["name"], (speed, value), xytext=(0, offset), textcoords="offset points",
                      va="center", ha="center", fontsize=8.5, color=_INK)  # fmt: skip
    ticker = require("matplotlib.ticker", "distill")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda speed, _: f"{speed:,.0f}"))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    speeds = [s["pairs_per_second"] for s in timed] or [1]
    axis.set_xlim(min(speeds) / 2.5, max(speeds) * 2.5)
    axis.margins(y=0.25)
    axis.set_xlabel("pairs a second on this machine (log scale)", fontsize=9, color=_INK)
    axis.set_ylabel(metric, fontsize=9, color=_INK)
    return _svg(figure)


def plot_training(phases: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss and agreement with the teacher over the steps, one panel a phase."""
    figure, axes = _canvas(4.6 * max(len(phases), 1), 2.9, max(len(phases), 1))
    for axis, phase in zip(axes, phases, strict=False):
        losses = [(e["step"], e["loss"]) for e in phase["history"] if "loss" in e]
        agreements = [(e["step"], e["eval_agreement"]) for e in phase["history"] if "eval_agreement" in e]
        agreements.insert(0, (0, phase["agreement_before"]))
        axis.plot(*_columns(losses), color="#b6bcc6", linewidth=1.4)
        axis.set_ylabel("loss", fontsize=9, color="#747c88")
        axis.set_xlabel(f"step, {phase['name']}", fontsize=9, color=_INK)
        twin = axis.twinx()
        twin.spines[["top", "left", "bottom"]].set_visible(False)
        twin.spines["right"].set_color("#b6bcc6")
        twin.plot(*_columns(agreements), color=_COLOURS["student"], marker="o", markersize=4, linewidth=1.6)
        twin.set_ylabel("agreement (Kendall tau)", fontsize=9, color=_COLOURS["student"])
        twin.tick_params(labelsize=9, length=3, colors=_COLOURS["student"])
    return _svg(figure)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
