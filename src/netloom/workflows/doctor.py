"""What this machine has, and what is missing."""

from __future__ import annotations

import importlib.util
from typing import Any

from netloom.data.cache import cache_directory
from netloom.runtime import (
    environment_record,
    keep_freed_memory,
    resolve_device,
    training_threads,
)
from netloom.training.planning import convolution_speedup, times_networks

OPTIONAL: dict[str, tuple[str, str]] = {}
"""Optional libraries by module name: what they are for, and how to get them."""


def examine() -> dict[str, Any]:
    """Device, threads, precision with its measurement, versions, cache folder, optional libraries."""
    device, threads = resolve_device("auto"), training_threads()
    speedup = convolution_speedup(device, threads)
    return {
        **environment_record(),
        "device": device,
        "threads": threads,
        "bfloat16_speedup": speedup,
        "precision": "measured for each network" if times_networks(device, speedup) else "float32",
        "allocator_keeps_bytes": keep_freed_memory(),
        "cache": str(cache_directory()),
        "optional": {
            name: {"installed": importlib.util.find_spec(name) is not None, "for": use, "get": how}
            for name, (use, how) in OPTIONAL.items()
        },
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The examination in lines for people."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    speedup = found["bfloat16_speedup"]
    lines = [
        f"Device      {found['device']} ({', '.join(found['cuda_devices']) or found['processor']})",
        f"Threads     {found['threads']} of {found['usable_cpus']} usable CPUs, {found['cpu_capability']}",
        f"Precision   {found['precision']}: a convolution takes {1 / speedup:.2f} times as long in bfloat16",
        f"Allocator   {_allocator(found['allocator_keeps_bytes'])}",
        f"Cache       {found['cache']}",
        f"Versions    {versions}",
    ]
    for name, item in found["optional"].items():
        state = "installed" if item["installed"] else f"missing; {item['get']}"
        lines.append(f"Optional    {name} ({item['for']}): {state}")
    return lines


def _allocator(kept: int) -> str:
    if not kept:
        return "the system's default"
    return f"keeps freed blocks of up to {f'{kept >> 30} GiB' if kept >= 1 << 30 else f'{kept >> 20} MiB'} for reuse"
