from __future__ import annotations

import os
import warnings
from types import SimpleNamespace

import pytest
import torch

from netloom import runtime
from netloom.runtime import ExecutionPlan, deterministic_kernels, executing, keep_freed_memory
from netloom.workflows import doctor


def settings() -> tuple[bool, ...]:
    return (
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_deterministic_kernels_are_asked_for_and_everything_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with deterministic_kernels():
        assert settings() == (True, True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        warnings.warn("max_pool2d does not have a deterministic implementation, but you set ...", stacklevel=1)
    assert settings() == before


def test_what_a_user_has_asked_for_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic_kernels():
            assert settings() == (True, True, False, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_on_the_cpu_nothing_is_asked_for() -> None:
    """Its kernels repeat their bits for the same number of threads."""
    before = settings()
    with executing(ExecutionPlan("cpu", 1, "float32")):
        assert settings() == before


@pytest.mark.parametrize(
    ("most", "asked", "kept", "told"),
    [
        (2**31, [(-3, 2**30), (-1, 2**30), (-2, 2**26)], 2**30, "keeps freed blocks of up to 1 GiB for reuse"),
        (
            2**25,
            [(-3, 2**30), (-3, 2**25), (-1, 2**30), (-2, 2**26)],
            2**25,
            "keeps freed blocks of up to 32 MiB for reuse",
        ),
        (0, [(-3, 2**30), (-3, 2**25)], 0, "the system's default"),
    ],
)
def test_an_allocator_that_refuses_the_threshold_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, most: int, asked: list[tuple[int, int]], kept: int, told: str
) -> None:
    """-3 is the threshold, -1 trimming, -2 padding (malloc.h); either of the last two alone ends its growth."""
    calls: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return int(parameter != -3 or value <= most)

    monkeypatch.setattr(runtime.sys, "platform", "linux")
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() == kept
    assert calls == asked
    monkeypatch.setattr(doctor, "convolution_speedup", lambda device, threads: 1.0)
    assert f"Allocator   {told}" in doctor.describe(doctor.examine())
