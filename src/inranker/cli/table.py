"""The results of a run as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inranker.store import read_json

_STYLES = {"better": "green", "worse": "red"}


def print_results(folder: Path, console: Console | None = None) -> None:
    """Print the tables, the verdict and the report's path of a run that was evaluated."""
    from inranker.evaluate.report import format_parameters

    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    report = read_json(folder / "evaluate" / "metrics.json")
    systems = {system["name"]: system for system in report["systems"]}
    for collection in report["collections"]:
        console.print()
        console.print(_table(collection, systems, report["student"], format_parameters))
    for warning in report["warnings"]:
        console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    console.print()
    console.print(Text(report["verdict"]["headline"], style="bold"), soft_wrap=True)
    for reason in report["verdict"]["reasons"]:
        console.print(Text(f"  {reason}"), soft_wrap=True)
    console.print()
    console.print(Text(f"Report:  {folder / 'evaluate' / 'report.html'}"), soft_wrap=True)
    student = folder / "export"
    if student.is_dir():
        console.print(Text(f"Student: {student}"), soft_wrap=True)


def _table(
    collection: Mapping[str, Any], systems: Mapping[str, Mapping[str, Any]], student: str, format_parameters: Any
) -> Table:
    kind = "judged" if collection["judged"] else "synthetic"
    table = Table(
        title=f"{collection['name']}: {collection['documents']:,} documents, {collection['queries']:,} {kind} queries",
        title_justify="left",
        title_style="bold",
        caption="[ ] 95% interval; first measure tested (paired randomisation, Holm), at 5%",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
    )
    metrics = list(next(iter(collection["figures"].values())))[:2]
    table.add_column("System", min_width=14)
    for metric in metrics:
        table.add_column(metric.replace("RR@", "MRR@"), justify="right", no_wrap=True)
    table.add_column("Against BM25", min_width=12)
    table.add_column("Pairs/s", justify="right", no_wrap=True)
    table.add_column("Params", justify="right", no_wrap=True)
    for name, figures in collection["figures"].items():
        system, first = systems[name], figures[metrics[0]]
        cells = [f"{_short(first['mean'])} [{_short(first['low'])}, {_short(first['high'])}]"]
        cells += [_short(figures[metric]["mean"]) for metric in metrics[1:]]
        speed = system["pairs_per_second"]
        table.add_row(
            Text(name, style="bold" if name == student else ""),
            *cells,
            Text(first["versus"], style=_STYLES.get(first["versus"], "")),
            f"{speed:,.0f}" if speed else "",
            format_parameters(system["parameters"]) if system["parameters"] else "",
        )
    return table


def _short(value: float) -> str:
    """`.334`: four characters are enough for what lies between 0 and 1."""
    return f"{value:.3f}".removeprefix("0")
