"""`docs/help.md` holds what every command's --help prints. To write it anew: python tests/test_cli_help.py"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from inranker.cli.app import app

HELP = Path(__file__).parents[1] / "docs" / "help.md"
# What a terminal of 96 columns or more gets: click leaves two of them free.
WIDTH = 94


def walk(command: click.Command, path: list[str]) -> Iterator[list[str]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, [*path, name])


def render() -> str:
    """The help of all commands, as Markdown."""
    parts = ["# Command line", "", "What `--help` prints, for every command."]
    for path in walk(app, []):
        done = CliRunner().invoke(app, [*path, "--help"], prog_name="inranker", terminal_width=WIDTH)
        assert done.exit_code == 0, done.output
        lines = [line.rstrip() for line in done.output.splitlines()]
        parts += ["", f"## {' '.join(['inranker', *path])}", "", "```text", *_trim(lines), "```"]
    return "\n".join(parts) + "\n"


def _trim(lines: list[str]) -> list[str]:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip("\n")).splitlines()


def test_the_docs_hold_every_help_text():
    assert HELP.read_text(encoding="utf-8") == render(), "write docs/help.md anew: python tests/test_cli_help.py"


if __name__ == "__main__":
    HELP.write_text(render(), encoding="utf-8")
