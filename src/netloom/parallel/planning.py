"""How many trainings at once, with how many threads each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from netloom.errors import NetloomError
from netloom.runtime import usable_cpus

# Fewer threads are taken if the whole is nearly as fast: they wait less for each other when the machine is busy.
_NEARLY_AS_FAST = 1.05
_MOST_PER_CPU = 2


def parse_jobs(jobs: int | str) -> int | None:
    """`auto` as None, a number as itself.

    Raises:
        NetloomError: It is neither `auto` nor a whole number of at least 1.
    """
    if jobs == "auto":
        return None
    try:
        number = int(jobs)
    except ValueError:
        number = 0
    if number < 1:
        raise NetloomError(f"jobs must be auto or a whole number of at least 1, not {jobs!r}.")
    return number


def candidate_threads(n_tasks: int, cpus: int, jobs: int | None) -> list[int]:
    """Thread counts worth timing for `n_tasks` trainings on `cpus` CPUs: powers of two, and all that there are.

    Args:
        n_tasks: Trainings to do.
        cpus: CPUs to use.
        jobs: How many at once, where that is asked for; None for any.
    """
    most = max(1, cpus // min(jobs or 1, n_tasks))
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def choose_jobs(
    seconds: Mapping[int, float],
    *,
    n_tasks: int,
    cpus: int,
    jobs: int | None = None,
    most: int | None = None,
    independent: bool = False,
) -> tuple[int, int]:
    """How many trainings at once and with how many threads each end the soonest.

    With t threads `cpus // t` trainings fit beside each other, so that all of them take `ceil(n_tasks / (cpus // t))`
    rounds of what one takes. That counts what is idle in the last round: five trainings on four CPUs are two rounds
    of one thread each, but three of two threads, which may be sooner. Where none depends on another, some more
    than there are CPUs may share these evenly, one thread each, so that nothing is idle: all five at once take 5/4 of a
    round. It does not count what neighbours take from each other, since a step is timed alone.

    Args:
        seconds: Of a step, by number of threads.
        n_tasks: Trainings to do.
        cpus: CPUs to use.
        jobs: How many at once, where that is asked for.
        most: At once at the most, where it is not; None for any number. Fewer get more threads.
        independent: No training is chosen by what others gave, so that more than `cpus` at once are no loss.

    Returns:
        Jobs and threads.
    """
    at_once = {t: min(n_tasks, jobs or min(max(1, cpus // t), most or n_tasks)) for t in seconds}
    total = {t: math.ceil(n_tasks / at_once[t]) * seconds[t] for t in seconds}
    best = min(total.values())
    threads = min(t for t in total if total[t] <= best * _NEARLY_AS_FAST)
    if independent and jobs is None and 1 in seconds:
        crowds = range(cpus + 1, min(n_tasks, most or n_tasks, _MOST_PER_CPU * cpus) + 1)
        shared = {n: math.ceil(n_tasks / n) * n / cpus * seconds[1] for n in crowds}
        crowd = min(shared, key=shared.__getitem__, default=0)
        if crowd and shared[crowd] * _NEARLY_AS_FAST < total[threads]:
            return crowd, 1
    return at_once[threads], threads


def cpus_of_workers(jobs: int, threads: int) -> list[Sequence[int]]:
    """The CPUs that each of `jobs` workers stays on, or nothing where the system had better choose.

    They are bound only where they fill the machine: two jobs that leave half of it free would otherwise meet on the
    same half. On one socket it neither gains nor costs anything (docs/log.md); between sockets memory is far. macOS and
    Windows have no such call here, and a container's quota is of time, not of CPUs.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    available = sorted(os.sched_getaffinity(0))
    if len(available) != usable_cpus() or not len(available) - threads < jobs * threads <= len(available):
        return []
    return [available[i * threads : (i + 1) * threads] for i in range(jobs)]
