"""Runs a plan of steps on a few GPUs: each is a process that leaves a file, and is skipped where the file is there.

Steps are started in the plan's order as soon as what they need is there and a GPU has room. `large` steps (the language
model) join small ones alone, and none joins them; `alone` steps want an empty GPU; of `small` steps (students, the
sentence encoder) one runs on a GPU, and `most` once `crowd` is there. A step that failed is tried once more; one that
would end too late is not begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """What to call (`name`: the step and its arguments), the file it leaves and those it needs, relative to OUT.

    Attributes:
        kind: `large`, `small`, `alone`, or empty for a step without a GPU.
        seconds: about how long it takes.
        wants: files it is better for; it waits for them till the clock says `until`, or till nobody will make them.
    """

    name: str
    leaves: str
    needs: tuple[str, ...] = ()
    kind: str = ""
    seconds: float = 30
    wants: tuple[str, ...] = ()
    until: float = 0


class Process(Protocol):
    """As `subprocess.Popen` has it."""

    def poll(self) -> int | None:
        """None while it runs, then the exit status."""
        ...


@dataclass
class Runner:
    """`start(name, gpu, attempt)` begins a step; `arrivals` are files that others bring; `seconds` is all the time."""

    plan: Sequence[Step]
    start: Callable[[str, str, int], Process]
    log: Callable[[str], None]
    out: Path
    gpus: Sequence[str]
    seconds: float
    arrivals: Sequence[str] = ()
    crowd: str = ""
    most: int = 2
    running: dict[Step, tuple[Process, str]] = field(default_factory=dict)
    failures: dict[Step, int] = field(default_factory=dict)

    def run(self, pause: float = 0.5) -> None:
        """All of the plan, or what there is time for."""
        (self.out / "finished").unlink(missing_ok=True)
        while left := self._settled():
            self._begin([s for s in left if s not in self.running])
            if not self.running and not self._may_come(left):
                break
            time.sleep(pause)
        self.log("finished")
        (self.out / "finished").touch()

    def clock(self) -> float:
        """Seconds since the run began, counted on over a restart."""
        return clock(self.out)

    def _there(self, name: str) -> bool:
        return (self.out / name).exists()

    def _left(self) -> list[Step]:
        return [
            s
            for s in self.plan
            if s in self.running or (not self._there(s.leaves) and self.failures.get(s, 0) < 2 and self._in_time(s))
        ]

    def _in_time(self, step: Step) -> bool:
        return self.clock() + step.seconds <= self.seconds

    def _may_come(self, left: Sequence[Step]) -> set[Step]:
        """The steps whose needs are there, on their way, or left by such a step."""
        coming = {name for name in self.arrivals if not self._there(name)}
        found: set[Step] = set()
        while more := {s for s in left if s not in found and all(self._there(n) or n in coming for n in s.needs)}:
            found |= more
            coming |= {s.leaves for s in more}
        return found

    def _begin(self, waiting: Sequence[Step]) -> None:
        coming = {s.leaves for s in self._may_come(self._left())}
        for step in waiting:
            patient = self.clock() < step.until and any(not self._there(w) and w in coming for w in step.wants)
            if patient or not all(map(self._there, step.needs)):
                continue
            gpu = self._place(step)
            if gpu is not None:
                self.log(f"{self.clock():.0f} s: start {step.name}" + (f" on GPU {gpu}" if gpu else ""))
                self.running[step] = (self.start(step.name, gpu, self.failures.get(step, 0)), gpu)

    def _place(self, step: Step) -> str | None:
        """The GPU for a step, the least busy first; empty where it needs none, None where there is no room."""
        if not step.kind:
            return ""
        busy = {gpu: [s.kind for s, (_, g) in self.running.items() if g == gpu] for gpu in self.gpus}
        most = self.most if self.crowd and self._there(self.crowd) else 1
        for gpu in sorted(self.gpus, key=lambda g: len(busy[g])):
            room = {"alone": 0, "large": most, "small": most - 1}[step.kind]
            if not {"large", "alone"} & set(busy[gpu]) and len(busy[gpu]) <= room:
                return gpu
        return None

    def _settled(self) -> list[Step]:
        """What is left once the processes that ended are told apart."""
        for step, (process, _) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[step]
            if status or not self._there(step.leaves):
                self.failures[step] = self.failures.get(step, 0) + 1
                self.log(f"{self.clock():.0f} s: FAILED {step.name}")
            else:
                self.log(f"{self.clock():.0f} s: done {step.name}")
        return self._left()


def begin_clock(out: Path) -> None:
    """Start the clock of the run in `out`, unless it runs already."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "began").exists():
        (out / "began").write_text(str(time.time()))


def clock(out: Path) -> float:
    """Seconds since the run in `out` began; 0 before it has."""
    return time.time() - float((out / "began").read_text()) if (out / "began").exists() else 0.0
