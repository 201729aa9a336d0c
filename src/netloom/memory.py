"""Python's memory, where its usual ways cost too much."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


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
