"""Compiles the native engine, once for each set of instructions that the compiler knows.

Without a C++ compiler, or on another processor than x86-64, nothing is compiled and the package runs on ONNX Runtime.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/inranker/rank/native")
_AVX512 = "-mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
FLAGS = {
    "avx2": "-mavx2 -mfma",
    "avxvnni": "-mavx2 -mfma -mavxvnni",
    "avx512": _AVX512,
    "amx": f"{_AVX512} -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16",
}
COMMON = "-O3 -std=c++17 -shared -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math"


class NativeBuildHook(BuildHookInterface):
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into the source folder, and take the results into the wheel."""
        if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
            return
        if self.compile(Path(self.root) / SOURCES):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
            build_data["artifacts"].append(f"{SOURCES}/*.so")

    def compile(self, folder: Path) -> int:
        """How many libraries were compiled."""
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        done = 0
        for name, flags in FLAGS.items():
            out = folder / f"bert-{name}.so"
            out.unlink(missing_ok=True)
            command = [*compiler, *COMMON.split(), *flags.split(), str(folder / "bert.cpp"), "-o", f"{out}.new"]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except OSError as error:
                self.app.display_warning(f"no C++ compiler ({error}): the engine will run on ONNX Runtime")
                return 0
            except subprocess.CalledProcessError as error:
                self.app.display_warning(f"not compiled for {name}: {' '.join(error.stderr.split())[:300]}")
                continue
            Path(f"{out}.new").replace(out)
            done += 1
        return done
