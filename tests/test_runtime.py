from __future__ import annotations

import os
import warnings

import pytest
import torch

from netloom.runtime import ExecutionPlan, deterministic_kernels, executing


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
