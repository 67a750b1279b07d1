"""The report: one HTML file that needs nothing beside it, made from `metrics.json` alone.

Text from collections is escaped by the template, and plots are pictures (`<img>` with a data URI), so nothing that a
document or a query holds can act on the page.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inranker.errors import require
from inranker.evaluate.plots import plot_effectiveness, plot_trade_off, plot_training
from inranker.store import atomic_write

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(path: str | Path, report: Mapping[str, Any]) -> Path:
    """Write the report that the evaluate stage's values describe."""
    path = Path(path)
    with atomic_write(path) as file:
        file.write(render_report(report))
    return path


def render_report(report: Mapping[str, Any]) -> str:
    """The report as HTML.

    Args:
        report: what the evaluate stage writes to `metrics.json`.
    """
    jinja2 = require("jinja2", "distill")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(parameters=format_parameters, svg=_data_uri, thousands="{:,}".format)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    plots = {
        "effectiveness": plot_effectiveness(report["collections"], _kinds(report["systems"])),
        "trade_off": plot_trade_off(report["systems"], report["student"], report["collections"][0]),
        "training": plot_training(report["training"]),
    }
    return template.render(report=report, plots=plots, systems={s["name"]: s for s in report["systems"]})


def format_parameters(count: int | None) -> str:
    """`22.7M`, `3.0B`, or a dash."""
    if count is None:
        return "–"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _kinds(systems: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {system["name"]: system["kind"] for system in systems}


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
