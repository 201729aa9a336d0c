from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from netloom.workflows import prepare


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_short_training_does_not_import_the_compiler() -> None:
    run(
        """
        import sys, tempfile
        import numpy as np
        import netloom

        pictures = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
        image_set = netloom.ImageSet.from_arrays(pictures, np.arange(60) % 3)
        for optimizer in ("adamw", "rmsprop", "muon"):
            settings = {"epochs": 2, "optimizer": optimizer}
            out = tempfile.mkdtemp()
            run = netloom.train(image_set, "digits", out=out, quiet=True, device="cpu", settings=settings)
            assert run.plan.shards == 0
            assert "torch._dynamo" not in sys.modules, optimizer
        """
    )


def test_with_the_compiler_torch_has_its_own_way() -> None:
    run(
        """
        import torch
        from netloom.compiler_import import import_compiler, optimizers_without_compiler

        optimizers_without_compiler()
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        weight.grad = torch.ones(2)
        optimizer.zero_grad()
        plain = torch.optim.Optimizer.zero_grad.__wrapped__
        ours = getattr(plain, "__dynamo_disable")
        import_compiler()
        weight.grad = torch.ones(2)
        optimizer.zero_grad()
        assert weight.grad is None
        assert getattr(plain, "__dynamo_disable") is not ours
        optimizers_without_compiler()
        assert getattr(plain, "__dynamo_disable") is not ours
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
        optimizer.load_state_dict(optimizer.state_dict())
        """
    )


@pytest.mark.parametrize(("per_second", "imported"), [(50, True), (2_000, False), (0, False)])
def test_it_is_imported_while_others_decode_for_longer_than_that_takes(
    per_second: int, imported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls, shown = [0.0], [], []
    monkeypatch.setattr(prepare.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(prepare, "import_compiler", lambda: calls.append(now[0]))
    update = prepare._importing_meanwhile(lambda done, total: shown.append((done, total)))
    for tenth in range(6):
        now[0] = tenth / 10
        update(per_second * tenth // 10, 1_000)
    assert calls == ([0.1] if imported else [])
    assert shown == [(per_second * tenth // 10, 1_000) for tenth in range(6)]
