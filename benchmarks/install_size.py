"""What an installation that ranks takes: disk, against torch with sentence-transformers, import, first score, memory.

    python benchmarks/install_size.py [--project CHECKOUT] [--torch REQUIREMENT] [--documents 10000] [--model NAME]
        [--folder FOLDER] [--out FILE]

Makes two virtual environments without pip: one with this project's core (no extras, a copy, not the checkout itself),
one with torch's CPU build and sentence-transformers, both at the versions of constraints.txt. Counted is all of
site-packages, compiled bytecode included; the package ships several models in two formats, so the figure with one int8
model alone is given, too. The figures of import, first score and memory are those of the first one.
--torch holds pip's arguments, since indexes differ in where they keep the CPU build:

    --torch "torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu"    (the default)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu"
IMPORT = """
import time
started = time.perf_counter()
import inranker
print(time.perf_counter() - started)
"""
FIRST_SCORE = """
import sys
from inranker import Reranker
Reranker.load(sys.argv[1]).scores([("first", "score")])
"""
MEMORY = """
import json, resource, sys, time
from inranker import Reranker
from inranker.rank.bench import made_documents
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
documents = made_documents(int(sys.argv[2]), 230)
ranker = Reranker.load(sys.argv[1])
ranker.scores([("first", "score")])
before = peak()
started = time.perf_counter()
assert len(ranker.rank("does the treatment increase survival of patients", documents)) == len(documents)
print(json.dumps({"before_mb": before, "peak_mb": peak(), "seconds": time.perf_counter() - started}))
"""


def make_environment(folder: Path, requirements: list[str], constraints: Path) -> Path:
    """A virtual environment with some packages; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(constraints), *requirements], check=True)
    return python


def measure_disk(folder: Path) -> dict[str, Any]:
    """Megabytes (10^6 bytes) in an environment's site-packages: all, and the largest packages."""
    site = next(folder.glob("lib/python*/site-packages"))
    files = [f for f in site.rglob("*") if f.is_file() and not f.is_symlink()]
    packages: dict[str, float] = {}
    for package in metadata.distributions(path=[str(site)]):
        own = {Path(str(f.locate())).resolve() for f in package.files or ()}
        packages[f"{package.name} {package.version}"] = megabytes(f for f in own if f.is_relative_to(site.resolve()))
    return {
        "bytes_mb": megabytes(files),
        "du_mb": round(sum(f.stat().st_blocks for f in site.rglob("*") if not f.is_symlink()) * 512 / 1e6, 1),
        "files": len(files),
        "packages": dict(sorted(packages.items(), key=lambda item: -item[1])),
    }


def megabytes(files: Any) -> float:
    """What files hold, not what blocks they take."""
    return round(sum(f.stat().st_size for f in files if f.is_file()) / 1e6, 1)


def shipped(folder: Path) -> dict[str, dict[str, float]]:
    """Megabytes of the models within the package, file by file where it matters."""
    weights = next(folder.glob("lib/python*/site-packages/inranker/models/weights"))
    return {
        model.name: {
            "int8": megabytes([model / "onnx/model_int8.onnx"]),
            "safetensors": megabytes([model / "model.safetensors"]),
            "all": megabytes(model.rglob("*")),
        }
        for model in sorted(weights.iterdir())
        if (model / "config.json").is_file()
    }


def seconds_of(python: Path, code: str, *arguments: str, repeats: int = 7) -> tuple[list[float], str]:
    """Seconds of whole processes, and what the last one printed; the first run, which fills caches, is left out."""
    seconds, printed = [], ""
    for _ in range(repeats + 1):
        started = time.perf_counter()
        # Not in a checkout, whose files would be imported instead.
        done = subprocess.run(
            [python, "-c", code, *arguments], cwd=python.parent, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
        printed += done.stdout
    return seconds[1:], printed


def summary(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, with the environments in a folder."""
    constraints = arguments.project / "constraints.txt"
    core = make_environment(folder / "core", [str(arguments.project.resolve())], constraints)
    figures: dict[str, Any] = {"core": measure_disk(folder / "core"), "models_mb": shipped(folder / "core")}
    chosen = figures["models_mb"].get(arguments.model)
    if chosen:
        others = sum(model["all"] for model in figures["models_mb"].values()) - chosen["all"] + chosen["safetensors"]
        figures["core_with_one_int8_model_mb"] = round(figures["core"]["bytes_mb"] - others, 1)
    _, printed = seconds_of(core, IMPORT)
    figures["import_s"] = summary([float(line) for line in printed.split()[1:]])
    figures["first_score_s"] = summary(seconds_of(core, FIRST_SCORE, arguments.model)[0])
    if arguments.documents:
        command = [core, "-c", MEMORY, arguments.model, str(arguments.documents)]
        done = subprocess.run(command, cwd=core.parent, capture_output=True, text=True, check=True)
        rounded = {name: round(value, 1) for name, value in json.loads(done.stdout).items()}
        figures["memory"] = {"documents": arguments.documents, **rounded}
    if arguments.torch:
        make_environment(folder / "peer", [*arguments.torch.split(), "sentence-transformers"], constraints)
        figures["peer"] = measure_disk(folder / "peer")
        if any(name.startswith("nvidia") for name in figures["peer"]["packages"]):
            raise SystemExit("pip found torch's CUDA build, not the CPU one: see --torch")
        peer = figures["peer"]["bytes_mb"]
        figures["core_of_peer"] = round(figures["core"]["bytes_mb"] / peer, 3)
        if chosen:
            figures["core_with_one_int8_model_of_peer"] = round(figures["core_with_one_int8_model_mb"] / peer, 3)
    return figures


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--torch", default=TORCH, help="pip's arguments for torch's CPU build; empty: no comparison")
    parser.add_argument("--model", default="inranker-mini")
    parser.add_argument("--documents", type=int, default=10_000, help="in the call that shows the memory; 0: none")
    parser.add_argument("--folder", type=Path, help="keep the environments here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(arguments.folder or Path(temporary), arguments)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
