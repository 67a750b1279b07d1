import sys
import time

import pytest

from inranker.cli import progress as module
from inranker.cli.progress import Meter, format_rate, format_seconds, progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_rate_and_time_left():
    clock = Clock()
    meter = Meter(100, clock)
    assert meter.rate is None
    for _ in range(5):
        clock.now += 2
        meter.advance(4)
    assert meter.rate == pytest.approx(2.0)
    assert meter.seconds_left == pytest.approx(40.0)
    assert meter.line("label") == "label  20/100 (20%)  2.0/s  40 s left"


def test_what_a_resumed_stage_found_done_is_no_speed():
    clock = Clock()
    meter = Meter(100, clock)
    for _ in range(5):
        clock.now += 0.1
        meter.advance(10)
    clock.now += 10
    meter.advance(10)
    assert meter.rate == pytest.approx(1.0)
    assert meter.seconds_left == pytest.approx(40.0)


def test_short_work_says_nothing(capsys):
    with progress(3, "quick") as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(module, "UNTIMED_SECONDS", 0)
    with progress(10, "slow") as advance:
        advance(5)
        time.sleep(0.3)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("slow  5/10 (50%)") and lines[0].endswith("left")
    assert lines[-1].startswith("slow  5 done in")
    assert len(lines) >= 3 and "\x1b" not in captured.err


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress(10, "slow") as advance:
        advance(5)
        time.sleep(0.5)
    assert "5/10 (50%)" in capsys.readouterr().err


def test_plain_lines_on_a_terminal_without_rich(capsys, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich", None)  # as if it were not installed
    with progress(10, "slow") as advance:
        advance(5)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("slow  5/10 (50%)") and lines[1].startswith("slow  5 done in")


def test_an_error_ends_the_bar(monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.01)
    with pytest.raises(ZeroDivisionError), progress(None, "broken"):
        time.sleep(0.05)
        raise ZeroDivisionError


def test_units():
    assert format_rate(0.5) == "30.0/min" and format_rate(12.34) == "12.3/s"
    assert [format_seconds(s) for s in (5, 65, 7265)] == ["5 s", "1 min 05 s", "2 h 01 min"]
