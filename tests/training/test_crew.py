from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import torch

from netloom.training.crew import Crew


@pytest.fixture
def _three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_three_threads")
def test_a_single_part_has_the_threads_of_the_caller() -> None:
    with contextlib.closing(Crew(1)) as crew:
        assert crew.share([torch.get_num_threads]) == [3]


@pytest.mark.usefixtures("_three_threads")
def test_a_part_has_one_thread_even_if_it_begins_when_the_calling_ones_has_ended() -> None:
    """Else the sums of its products would be others, in their last bits, on a busy machine."""
    restored = threading.Event()

    def late() -> int:
        assert restored.wait(60)
        torch.ones(200, 200) @ torch.ones(200, 200)
        return torch.get_num_threads()

    with contextlib.closing(Crew(2)) as crew:
        original = torch.set_num_threads

        def told(n: int) -> None:
            original(n)
            if n == 3:
                restored.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "set_num_threads", told)
            assert crew.share([torch.get_num_threads, late]) == [1, 1]
    assert torch.get_num_threads() == 3
