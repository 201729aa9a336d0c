"""Pixels that stay in their file: mapped into memory, read by the system when they are touched.

No torch at run time: pictures are decoded while it is still being imported.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from netloom.memory import memory_limit_bytes

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]

_SHARE_OF_MEMORY = 0.5
"""What pictures may take of the memory; network, activations and everything else want the rest."""


def fits_memory(n_bytes: int) -> bool:
    """Whether pixels of that size can be held in memory while a network is trained on them."""
    return n_bytes <= _SHARE_OF_MEMORY * memory_limit_bytes()


def map_pixels(path: Path) -> Pixels:
    """The array of an .npy file, mapped: nothing written into it reaches the file.

    What fits the memory is mapped copy-on-write. Systems count such a mapping as memory that may be needed in full, and
    refuse one that is larger than what they have; so what does not fit, or is refused, is mapped read-only.

    Raises:
        OSError, ValueError: There is no such file, or it is damaged.
    """
    if fits_memory(path.stat().st_size):
        try:
            return cast(Pixels, np.load(path, mmap_mode="c"))
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
    return cast(Pixels, np.load(path, mmap_mode="r"))


def will_need(images: torch.Tensor, rows: npt.NDArray[np.int64]) -> None:
    """Tell the system that `images[rows]`, mapped from a file, are read next, where it can be told.

    It then reads them all at once. Left to page faults it reads one after the other, and what lies around each too.
    `images` is uint8 `[N, C, H, W]` in channels-last memory on the CPU.
    """
    advise = _madvise()
    if advise is None or len(images) == 0:
        return
    row_bytes = images[0].numel()
    starts = images.data_ptr() + np.sort(rows) * row_bytes
    firsts = starts - starts % mmap.PAGESIZE
    for first, length in zip(firsts.tolist(), (starts + row_bytes - firsts).tolist(), strict=True):
        advise(first, length)


@functools.cache
def _madvise() -> Callable[[int, int], object] | None:
    """A function of the address of a page and a number of bytes from there on; None on systems without it."""
    will_need = getattr(mmap, "MADV_WILLNEED", None)
    if os.name != "posix" or will_need is None:
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, length: function(address, length, will_need)
