"""Memory: Python's, where its usual ways cost too much, and the machine's, as far as this process may use it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the cyclic collector from walking, again and again, the objects that the body makes.

    Listing 60,000 archive members takes half the time so; nothing is kept that reference counts free.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_lack_of_memory(error: Exception) -> bool:
    """Whether Python, torch's CPU allocator or an accelerator's has no memory left; torch has no class for all."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(part in str(error) for part in words)


def memory_limit_bytes() -> int:
    """How much memory this process may use: the machine's, cut to its container's and its own limits.

    Where nothing tells, it is taken for unlimited (2^63 - 1).
    """
    return min(_machine_bytes(), _container_bytes(), _process_bytes())


def free_memory_bytes() -> int:
    """How much of that is free or would be given back to this process; all of it where nothing tells."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return min(memory_limit_bytes(), int(available.split()[1]) * 1024)
    return memory_limit_bytes()


_UNLIMITED = sys.maxsize


def _machine_bytes() -> int:
    if sys.platform == "win32":
        return _windows_bytes()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return _UNLIMITED


def _windows_bytes() -> int:
    """Physical memory by `GlobalMemoryStatusEx`, whose structure is 64 bytes: two 32-bit and seven 64-bit numbers."""
    status = (ctypes.c_uint64 * 8)(ctypes.sizeof(ctypes.c_uint64 * 8))
    found = ctypes.CDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status[1]) if found else _UNLIMITED


def _container_bytes() -> int:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup versions 2 and 1
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            return int((Path("/sys/fs/cgroup") / name).read_text())
    return _UNLIMITED


def _process_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return _UNLIMITED
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=_UNLIMITED)
