"""Random numbers as functions of counters: the same (seed, purpose, counters) always give the same numbers.

No generator state exists, so nothing has to be saved to go on exactly where a training stopped, and the numbers of
one sample do not depend on which other samples are in its batch.

Source: the SplitMix64 finalizer (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

SPLITMIX_INCREMENT = 0x9E3779B97F4A7C15
SPLITMIX_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SPLITMIX_SHIFTS = (30, 27, 31)

_GOLDEN = np.uint64(SPLITMIX_INCREMENT)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    *before, last = map(np.uint64, SPLITMIX_SHIFTS)
    for shift, factor in zip(before, SPLITMIX_FACTORS, strict=True):
        z = (z ^ (z >> shift)) * np.uint64(factor)
    return z ^ (z >> last)


def words(seed: int, n: int) -> npt.NDArray[np.uint64]:
    """Random bits, uint64 `[n]`: word i depends on the seed and on i alone."""
    with np.errstate(over="ignore"):
        return _mix(np.uint64(seed) + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64))


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for `purpose` and `counters`, independent of every other purpose's."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def uniforms(
    seed: int, purpose: str, epoch: int, samples: npt.NDArray[np.int64], columns: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 `[len(samples), columns]`: row i depends on `samples[i]` alone."""
    base = np.uint64(derive_seed(seed, purpose, epoch))
    with np.errstate(over="ignore"):
        rows = _mix(base + _GOLDEN * (samples.astype(np.uint64) + np.uint64(1)))
        cells = _mix(rows[:, None] + _GOLDEN * (np.arange(columns, dtype=np.uint64) + np.uint64(1)))
    return (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, purpose: str, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of `range(n)`, int64 `[n]`, as a function of (seed, purpose, epoch)."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, epoch))).permutation(n)
