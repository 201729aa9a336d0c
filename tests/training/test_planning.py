from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from netloom.runtime import ExecutionPlan
from netloom.training.planning import choose_plan
from training.helpers import HEAD, batches, network


def test_measuring_leaves_weights_statistics_and_generators_untouched() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    plan = choose_plan(model, next(iter(batches().epoch())), [HEAD], device="cpu")
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert 1 <= plan.threads <= torch.get_num_threads()
    assert plan.reason


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_asked_for_precision_is_not_measured(precision: str) -> None:
    plan = choose_plan(network(), next(iter(batches().epoch())), [HEAD], device="cpu", precision=precision)
    assert plan.precision == precision
    assert ExecutionPlan.from_json(plan.to_json()) == plan


def test_without_fast_bfloat16_instructions_float32_is_chosen() -> None:
    """oneDNN can be told to use AVX2 only, as on an ordinary laptop, where bfloat16 is several times slower."""
    code = (
        "from netloom.training.planning import choose_plan\n"
        "from training.helpers import HEAD, batches, network\n"
        "plan = choose_plan(network(), next(iter(batches().epoch())), [HEAD], device='cpu')\n"
        "assert plan.precision == 'float32', plan"
    )
    tests = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": tests}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
