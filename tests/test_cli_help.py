"""`docs/help.md` holds what every command's --help prints. To write it anew: python tests/test_cli_help.py"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HELP = Path(__file__).parents[1] / "docs" / "help.md"
SCRIPT = """
import sys
import typer.rich_utils
typer.rich_utils.MAX_WIDTH = 96
from typer.main import get_command
from typer.testing import CliRunner
from inranker.cli.app import app

def walk(command, path):
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, [*path, name])

for path in walk(get_command(app), []):
    print("\\x00" + " ".join(["inranker", *path]))
    print(CliRunner().invoke(app, [*path, "--help"], prog_name="inranker").output)
"""


def render() -> str:
    """The help of all commands, as Markdown."""
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "96", "PYTHONIOENCODING": "utf-8"}
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    parts = ["# Command line", "", "What `--help` prints, for every command."]
    for part in done.stdout.split("\x00")[1:]:
        name, _, text = part.partition("\n")
        lines = [line.rstrip() for line in text.splitlines()]
        parts += ["", f"## {name}", "", "```text", *_trim(lines), "```"]
    return "\n".join(parts) + "\n"


def _trim(lines: list[str]) -> list[str]:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip("\n")).splitlines()


def test_the_docs_hold_every_help_text():
    assert HELP.read_text(encoding="utf-8") == render(), "write docs/help.md anew: python tests/test_cli_help.py"


if __name__ == "__main__":
    HELP.write_text(render(), encoding="utf-8")
