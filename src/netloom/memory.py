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
    of_machine = _figure_of_linux("/proc/meminfo", "MemAvailable:") or _machine_bytes()
    of_container = _container_bytes() - _used_in_container()
    return max(0, min(of_machine, of_container, _process_bytes(free=True)))


_UNLIMITED = sys.maxsize
_CONTAINER = Path("/sys/fs/cgroup")


def _figure_of_linux(path: str, name: str) -> int:
    """What Linux says in kilobytes in a file of `/proc`, in bytes; 0 where nothing tells."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        return next(int(line.split()[1]) * 1024 for line in Path(path).read_text().splitlines() if name in line)
    return 0


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
    return _of_container("memory.max", "memory/memory.limit_in_bytes", otherwise=_UNLIMITED)


def _used_in_container() -> int:
    """Without the pages of files, which are given back when memory is short."""
    used = _of_container("memory.current", "memory/memory.usage_in_bytes", otherwise=0)
    for name, figure in (("memory.stat", "inactive_file"), ("memory/memory.stat", "total_inactive_file")):
        with contextlib.suppress(OSError, ValueError):
            figures = dict(line.split() for line in (_CONTAINER / name).read_text().splitlines())
            return max(0, used - int(figures.get(figure, 0)))
    return used


def _of_container(*names: str, otherwise: int) -> int:
    """What cgroup's version 2 says in a file of the first name, or version 1 in the second."""
    for name in names:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            return int((_CONTAINER / name).read_text())
    return otherwise


def _process_bytes(*, free: bool = False) -> int:
    try:
        import resource
    except ImportError:  # Windows
        return _UNLIMITED
    found = [_UNLIMITED]
    for kind, size in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - (_figure_of_linux("/proc/self/status", size) if free else 0))
    return min(found)
