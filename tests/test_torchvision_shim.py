from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from netloom.torchvision_shim import torchvision


def test_the_parts_that_are_used_work() -> None:
    """Reference: a quarter turn is exact, so NumPy says what it must be."""
    picture = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)
    v2 = importlib.import_module(f"{torchvision().__name__}.transforms.v2")
    turned = v2.functional.rotate(picture, 90)
    assert np.array_equal(turned.numpy(), np.rot90(picture.numpy(), axes=(1, 2)))
    assert torchvision().models.get_model("resnet18", weights=None).fc.out_features == 1000


def test_it_is_imported_once() -> None:
    assert torchvision() is torchvision() is sys.modules["torchvision"]


@pytest.mark.slow
def test_it_works_in_a_fresh_process_before_and_after_a_failed_import() -> None:
    code = (
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from netloom.torchvision_shim import torchvision as door\n"
        "print(door().ops.nms.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["nms"], done.stderr
