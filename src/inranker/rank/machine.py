"""What this machine offers: the cores that are really ours, the instructions that decide which model file is fast."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


def available_threads() -> int:
    """Threads worth starting: the cores this process may run on, less where a control group's quota allows less."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota + 0.5)) if quota else cores)


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the control group's quota is worth, or None where there is none."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None


@cache
def cpu_info() -> tuple[str, frozenset[str]]:
    """The processor's name and its instruction flags (as Linux spells them; no flags elsewhere)."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
                break
    except OSError:
        pass
    return name, flags


def has_int8_dot() -> bool:
    """Whether the processor multiplies int8 without saturating (VNNI, AMX; on Arm, dot products)."""
    return bool(cpu_info()[1] & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def has_fast_bf16() -> bool:
    """Whether the processor has tiles for bf16; without them it is slower than fp32 or int8 on a CPU."""
    return "amx_bf16" in cpu_info()[1]
