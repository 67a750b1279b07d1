"""What is finished goes home, in the order of its worth, once each; on the other side it is gathered again.

    python experiments/second_run/home.py send --out OUT --to FOLDER [--until SECONDS] [--again NAME]
    python experiments/second_run/home.py collect FROM TO [--watch]

`send` waits till the run's clock says SECONDS (or the run has ended) and writes one archive of what has not gone yet,
in parts of at most 15 MiB. `--again` sends once more what a named archive held, should it have been lost on the way.
`collect` copies parts from wherever they lie under FROM and unpacks every archive whose parts are all there.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from runner import clock

from inranker.store import read_json, write_json

PART = 15 << 20
MOST = 4 * PART - (1 << 20)  # below 64 MiB, and the headers' room
# What is worth most comes first; all but the weights and the adapter is small.
ORDER = [
    "labels/*.parquet",
    "labels.json",
    "chosen.json",
    "narratives-*.parquet",
    "weights-deep-soup-1.tar",
    "weights-nano-wide-1.tar",
    "scores-*.parquet",
    "student-*.json",
    "dev-*.json",
    "bench-*.json",
    "teacher-*.json",
    "more.parquet",
    "cosines.parquet",
    "log.txt",
    "step-*.txt",
    "teacher-*/adapter_*",
    "teacher-*/teacher.json",
    "weights-*.tar",
    "free.parquet",
]


def send(out: Path, to: Path, until: float, again: str | None) -> None:
    """Write one archive of what is new into `to`."""
    while clock(out) < until and not (out / "finished").exists():
        time.sleep(1)
    ledger = out / "sent.json"
    sent: dict[str, list[str]] = read_json(ledger) if ledger.exists() else {}
    name = f"home-{len(sent):03d}"
    if again:
        sent[again] = []
    gone = {entry for entries in sent.values() for entry in entries}
    chosen: dict[str, Path] = {}
    size = 0
    for pattern in ORDER:
        for path in sorted(out.glob(pattern)):
            # A log that grew is another artefact; everything else is written once, and whole.
            entry = f"{path.relative_to(out)}:{path.stat().st_size}"
            room = path.stat().st_size + 1024
            if entry not in gone and entry not in chosen and size + room <= MOST:
                chosen[entry] = path
                size += room
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in chosen.values():
            archive.add(path, path.relative_to(out).as_posix(), recursive=False)
    data = buffer.getvalue()
    parts = range(0, len(data), PART)
    to.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(parts):
        (to / f"{name}.tar.{number}-of-{len(parts)}").write_bytes(data[start : start + PART])
    write_json(ledger, {**sent, name: list(chosen)})
    log = (out / "log.txt").read_text().splitlines()[-25:] if (out / "log.txt").exists() else []
    sys.stdout.write("\n".join([*log, f"{clock(out):.0f} s: {name}: {len(chosen)} files, {len(data) >> 20} MiB", ""]))


def collect(source: Path, target: Path, watch: bool) -> None:
    """Gather parts and unpack the archives that are whole."""
    parts = target / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    while True:
        for path in sorted(source.rglob("home-*.tar.*")):
            kept = parts / path.name
            if not kept.exists():
                shutil.copy(path, kept.with_name(f".{path.name}"))
                kept.with_name(f".{path.name}").rename(kept)
        for first in sorted(parts.glob("home-*.tar.0-of-*")):
            stem, count = first.name.split(".tar.0-of-")
            pieces = [parts / f"{stem}.tar.{n}-of-{count}" for n in range(int(count))]
            if all(p.exists() for p in pieces) and not (parts / f"{stem}.done").exists():
                with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as archive:
                    archive.extractall(target / "out", filter="data")
                    sys.stdout.write(f"{stem}: {', '.join(archive.getnames())}\n")
                    sys.stdout.flush()
                (parts / f"{stem}.done").touch()
        if not watch:
            return
        time.sleep(1)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sending = commands.add_parser("send")
    sending.add_argument("--out", type=Path, required=True)
    sending.add_argument("--to", type=Path, required=True)
    sending.add_argument("--until", type=float, default=0)
    sending.add_argument("--again")
    gathering = commands.add_parser("collect")
    gathering.add_argument("source", type=Path)
    gathering.add_argument("target", type=Path)
    gathering.add_argument("--watch", action="store_true")
    a = parser.parse_args()
    if a.command == "send":
        send(a.out, a.to, a.until, a.again)
    else:
        collect(a.source, a.target, a.watch)


if __name__ == "__main__":
    main()
