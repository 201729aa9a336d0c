from __future__ import annotations

import os

import pytest

from netloom.errors import NetloomError
from netloom.parallel.planning import candidate_threads, choose_jobs, cpus_of_workers, parse_jobs
from netloom.runtime import usable_cpus


@pytest.mark.parametrize(
    ("seconds", "n_tasks", "cpus", "jobs", "expected"),
    [
        # Threads do not pay: one each.
        ({1: 1.0, 2: 0.9, 4: 0.8}, 8, 4, None, (4, 1)),
        # Perfect scaling: the same total, so fewer threads.
        ({1: 1.0, 2: 0.5, 4: 0.25}, 8, 4, None, (4, 1)),
        # Five on four CPUs: 2 rounds of one thread, 3 of two, 5 of four, and good scaling fills the last round.
        ({1: 1.0, 2: 0.52, 4: 0.28}, 5, 4, None, (1, 4)),
        ({1: 1.0, 2: 0.55, 4: 0.5}, 5, 4, None, (2, 2)),
        # Fewer trainings than CPUs leave threads for each.
        ({1: 1.0, 2: 0.6, 4: 0.5}, 2, 4, None, (2, 2)),
        # As asked.
        ({1: 1.0, 2: 0.6}, 8, 4, 2, (2, 2)),
        ({1: 1.0}, 8, 4, 16, (8, 1)),
        ({1: 1.0}, 1, 4, None, (1, 1)),
    ],
)
def test_the_choice_ends_the_soonest(
    seconds: dict[int, float], n_tasks: int, cpus: int, jobs: int | None, expected: tuple[int, int]
) -> None:
    assert choose_jobs(seconds, n_tasks=n_tasks, cpus=cpus, jobs=jobs) == expected


def test_fewer_at_once_get_more_threads() -> None:
    """64 CPUs, 50 trainings: without a bound a thread for each, with one the threads that make each of them soonest."""
    seconds = {1: 1.0, 2: 0.52, 4: 0.3, 8: 0.2, 16: 0.25}
    assert choose_jobs(seconds, n_tasks=50, cpus=64) == (50, 1)
    assert choose_jobs(seconds, n_tasks=50, cpus=64, most=10) == (8, 8)
    assert choose_jobs(seconds, n_tasks=50, cpus=64, jobs=16, most=10)[0] == 16
    assert choose_jobs(seconds, n_tasks=50, cpus=4, most=10) == choose_jobs(seconds, n_tasks=50, cpus=4)


@pytest.mark.parametrize(
    ("n_tasks", "cpus", "expected"),
    [
        (5, 4, (5, 1)),  # 5/4 of a round in place of two
        (10, 4, (5, 1)),  # 2.5 in place of 3
        (4, 4, (4, 1)),
        (50, 4, (4, 1)),  # 12.5 in place of 13 is not worth another process
        (3, 4, (3, 1)),
        (17, 4, (6, 1)),  # no more than two a CPU
    ],
)
def test_independent_trainings_leave_no_cpu_idle(n_tasks: int, cpus: int, expected: tuple[int, int]) -> None:
    assert choose_jobs({1: 1.0, 2: 0.9, 4: 0.8}, n_tasks=n_tasks, cpus=cpus, independent=True) == expected
    assert choose_jobs({1: 1.0}, n_tasks=n_tasks, cpus=cpus, jobs=2, independent=True)[0] == 2


def test_candidates_are_powers_of_two_and_all() -> None:
    assert candidate_threads(10, 6, None) == [1, 2, 4, 6]
    assert candidate_threads(10, 6, 2) == [1, 2, 3]
    assert candidate_threads(1, 8, 4) == [1, 2, 4, 8]
    assert candidate_threads(10, 2, 4) == [1]


def test_jobs_are_auto_or_a_number() -> None:
    assert parse_jobs("auto") is None
    assert parse_jobs("3") == parse_jobs(3) == 3
    for wrong in ("0", "-1", "2.5", "all", "", 0):
        with pytest.raises(NetloomError, match="jobs must be auto or"):
            parse_jobs(wrong)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_workers_are_bound_only_where_they_fill_the_machine() -> None:
    available = sorted(os.sched_getaffinity(0))
    if len(available) != usable_cpus():
        pytest.skip("a quota limits this container")
    n = len(available)
    bound = cpus_of_workers(n, 1)
    assert bound == [[cpu] for cpu in available]
    assert cpus_of_workers(n + 1, 1) == []
    if n > 1:
        assert cpus_of_workers(n - 1, 1) == []
        assert cpus_of_workers(1, n) == [available]
