"""What the command line does with no arguments, with mistakes and with Ctrl-C, and what it loads to start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from inranker.cli.app import app


def call(*arguments, **options):
    return CliRunner().invoke(app, arguments, prog_name="inranker", **options)


@pytest.mark.parametrize("group", [(), ("models",)])
def test_no_arguments_get_the_help(group):
    shown = call(*group)
    assert shown.exit_code == 2
    assert shown.output == call(*group, "--help").output


def test_commands_are_listed_in_the_order_in_which_people_meet_them():
    lines = call("--help").output.partition("Commands:\n")[2].splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert listed == list(app.commands)
    assert listed[:3] == ["quickstart", "init", "distill"] and listed[-1] == "models"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnk"], "No such command 'rnk'"),
        (["rank"], "Missing option '--query' / '-q'."),
        (["rank", "-q", "x", "--top-n", "-1"], "Invalid value for '--top-n': -1 is not in the range x>=0."),
        (["rank", "-q", "x", "--threads", "many"], "'many' is not a valid integer"),
        (["rank", "-q", "x", "--no-json"], "No such option"),
        (["rank", "-q", "x", "--modle", "y"], "--model"),
        (["evaluate", "--fusion", "1.5"], "1.5 is not in the range 0<=x<=1."),
        (["evaluate", "--fusion", "nan"], "nan is not in the range 0<=x<=1."),
        (["models", "pull"], "Missing argument 'NAMES...'"),
        (["serve", "--port", "65536"], "65536 is not in the range 0<=x<=65535."),
    ],
)
def test_a_mistake_is_told_in_one_message(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    *usage, said = result.stderr.splitlines()
    assert said.startswith("Error: ") and message in said
    assert all(not line or line.startswith(("Usage: ", "Try ")) for line in usage)


def test_ctrl_c_ends_a_command_without_a_word(monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("inranker.cli.rank._read_documents", interrupted)
    result = call("rank", "-q", "x")
    assert (result.exit_code, result.output) == (130, "")


def test_the_start_loads_little():
    code = (
        "import sys, inranker.cli.app\n"
        "print(*sorted({'torch', 'transformers', 'numpy', 'pyarrow', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_recipe_without_pydantic_names_the_extra(tmp_path):
    code = "import sys; sys.modules['pydantic'] = None; from inranker.cli.app import main; main()"
    command = [sys.executable, "-c", code, "distill", "quickstart", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "inranker: pydantic is not installed; from the checkout run: pip install '.[distill]'\n"
