"""The machine: what it is, and how much of it other work took during a measurement."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netloom.runtime import environment_record

# Instruction sets that decide how fast networks run; the other flags say nothing here.
_FLAGS = ("fma", "avx", "avx2", "avx_vnni", "avx512", "amx", "asimd", "sve", "bf16", "i8mm")
# More than this of one CPU on average, and a record says that the machine was not quiet.
QUIET_CPUS = 0.3


def machine_record() -> dict[str, Any]:
    """Processor with its instruction sets, memory, system, GPUs; no names or paths of the machine."""
    environment = environment_record()
    kept = ("system", "processor", "cpu_capability", "usable_cpus", "cuda_devices")
    return {key: environment[key] for key in kept} | {"cpu_flags": cpu_flags(), "memory_bytes": memory_bytes()}


def narrow_isa() -> str | None:
    """`AVX2` where the processor has no wider vectors: its figures are for those whose laptop is such a one."""
    return "AVX2" if environment_record()["cpu_capability"] == "AVX2" else None


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of machines alike: apart from the system's version and from memory.

    Both change with a machine's next start, memory by some pages.
    """

    def lasting(record: Mapping[str, Any]) -> dict[str, Any]:
        system = str(record.get("system")).partition("-")[0]
        return {**record, "system": system, "memory_bytes": None}

    return lasting(one) == lasting(other)


def cpu_flags(text: str | None = None) -> list[str]:
    """The instruction sets for vectors and matrices, from the contents of /proc/cpuinfo; empty where there is none."""
    if text is None:
        text = ""
        with contextlib.suppress(OSError):
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return sorted(flag for flag in line.split(":", 1)[1].split() if flag.startswith(_FLAGS))
    return []


def source_version(root: Path) -> str | None:
    """The last commit that changed netloom or this suite, with `+` and a digest of what differs from it, if anything.

    None where `root` is no checkout. Figures and pages that are committed meanwhile change nothing.
    """
    measured = ("--", "src/netloom", "benchmarks/suite")
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = _git(root, "log", "-1", "--format=%H", *measured)
        changes = _git(root, "status", "--porcelain", *measured) + _git(root, "diff", "HEAD", *measured)
        digest = f"+{hashlib.sha256(changes.encode()).hexdigest()[:10]}" if changes else ""
        return commit + digest if commit else None
    return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=root, check=True, capture_output=True, encoding="utf-8", errors="replace"
    )
    return done.stdout.strip()


def memory_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def busy_seconds(text: str) -> float:
    """CPU seconds that all processes together have used since the start, from the contents of /proc/stat."""
    user, nice, system, _idle, _wait, irq, soft = map(int, text.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


class OtherWork:
    """Counts the CPUs that processes other than this one and its children use."""

    def __init__(self) -> None:
        self._start = self._now()

    def cpus(self) -> float | None:
        """CPUs in use by others, on average since this object was made; None where the system does not tell."""
        now = self._now()
        if self._start is None or now is None:
            return None
        return max(0.0, (now[1] - self._start[1]) / max(1e-9, now[0] - self._start[0]))

    @staticmethod
    def _now() -> tuple[float, float] | None:
        """Time, and CPU seconds of others so far."""
        try:
            text = Path("/proc/stat").read_text(encoding="ascii")
        except OSError:
            return None
        own = os.times()
        return time.perf_counter(), busy_seconds(text) - sum(own[:4])
