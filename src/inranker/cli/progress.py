"""Progress of long work on standard error: a bar on a terminal, plain lines elsewhere, nothing under two seconds."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENT_SECONDS = 2.0
LINE_SECONDS = 10.0
# A resumed stage reports at once what it found done, which says nothing about the speed of the rest.
UNTIMED_SECONDS = 1.0
_WINDOW_SECONDS = 30.0


class Meter:
    """Counts work done and tells its rate and the time left; a rate is that of the last half minute."""

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self._clock = clock
        self._started = clock()
        self._recent: deque[tuple[float, int]] = deque([(self._started, 0)])

    def advance(self, count: int) -> None:
        """Add finished items."""
        now = self._clock()
        self.done += count
        if now - self._started < UNTIMED_SECONDS:
            self._recent.clear()
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[0][0] > _WINDOW_SECONDS:
            self._recent.popleft()

    @property
    def rate(self) -> float | None:
        """Items a second; None before anything was timed."""
        # Up to the last finished item: work that ends in large pieces is no slower between two of them.
        (start, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - start) if after > before and end > start else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the present rate; None where that is unknown."""
        rate = self.rate
        if self.total is None or not rate:
            return None
        return max((self.total - self.done) / rate - (self._clock() - self._recent[-1][0]), 0)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def line(self, label: str) -> str:
        """One plain line: `label  120/400 (30%)  12.3/s  23 s left`."""
        parts = [label]
        if self.total:
            parts.append(f"{self.done:,}/{self.total:,} ({100 * self.done // self.total}%)")
        elif self.done:
            parts.append(f"{self.done:,}")
        else:
            parts.append(f"{format_seconds(self.seconds)} so far")
        if self.rate is not None:
            parts.append(format_rate(self.rate))
        if self.done and self.seconds_left is not None:
            parts.append(f"{format_seconds(self.seconds_left)} left")
        return "  ".join(parts)


def format_rate(rate: float) -> str:
    """`12.3/s`, or `4.1/min` for what takes longer than a second each."""
    return f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"


def format_seconds(seconds: float) -> str:
    """`23 s`, `4 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def progress(total: int | None, label: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of the block's work; it is told of finished items through the function this yields.

    Args:
        total: items of work; None where nobody knows.
        label: what is being done.
    """
    meter = Meter(total)
    ended = threading.Event()
    # rich draws the bar; it comes with the extra `distill`, and without it a terminal gets plain lines, too.
    draws = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    watch = _watch_terminal if draws else _watch_lines
    watcher = threading.Thread(target=watch, args=(meter, label, ended), daemon=True)
    watcher.start()
    try:
        yield meter.advance
    finally:
        ended.set()
        watcher.join()


def _watch_lines(meter: Meter, label: str, ended: threading.Event) -> None:
    if ended.wait(SILENT_SECONDS):
        return
    print(meter.line(label), file=sys.stderr, flush=True)
    while not ended.wait(LINE_SECONDS):
        print(meter.line(label), file=sys.stderr, flush=True)
    count = f"{meter.done:,} " if meter.done else ""
    print(f"{label}  {count}done in {format_seconds(meter.seconds)}", file=sys.stderr, flush=True)


def _watch_terminal(meter: Meter, label: str, ended: threading.Event) -> None:
    if ended.wait(SILENT_SECONDS):
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=meter.total, completed=meter.done, numbers="")
        last = False
        while not last:
            last = ended.wait(0.2)
            bar.update(task, completed=meter.done, numbers=meter.line("").strip())
