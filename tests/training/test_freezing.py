"""Freezing against what it promises: what is frozen keeps its bits and costs no gradients; what joins begins anew."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import ModelError
from netloom.models import create_model
from netloom.runtime import ExecutionPlan
from netloom.training.callbacks import BestWeights, Callback, Lookahead, ReduceOnPlateau, WeightAveraging
from netloom.training.capture import capture
from netloom.training.checkpoint import Checkpointer, load_checkpoint
from netloom.training.freezing import Freezing
from netloom.training.gradients import WholeBatchGradients
from netloom.training.optim import MUON, OPTIMIZERS, create_optimizer, rate_factors
from netloom.training.regularize import MaxNorm, WeightPenalty
from netloom.training.schedules import Schedule
from netloom.training.shards import ShardedGradients
from netloom.training.state import TrainingState
from training.helpers import HEAD, StopAfter, batches, equal, train, untimed

STEPS_PER_EPOCH = 6
PLANS = {
    "whole": ExecutionPlan("cpu", 1, "float32"),
    "shards": ExecutionPlan("cpu", 1, "float32", shards=2),
}


def staged(seed: int = 0, **options: Any) -> nn.Module:
    """Blocks 1 to 3 with batch normalization and dropout, a dense layer with dropout, and the classifier."""
    own = {"filters": (4, 6, 8), "normalization": "before", "block_dropout": 0.2}
    own |= {"dense_units": (8,), "dense_dropout": 0.3}
    model = create_model(
        "convnet", in_channels=1, num_outputs=3, image_size=(8, 8), seed=seed, options={**own, **options}
    )
    # As pretrained ones are: statistics that are not those of the pictures at hand.
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def of_trunk(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: v.detach().clone() for n, v in model.state_dict().items() if n.startswith("trunk.")}


def prepared(seed: int = 0, **options: Any) -> tuple[nn.Module, Freezing]:
    model = staged(seed)
    freezing = Freezing.of(model, **options)
    freezing.prepare(model)
    return model, freezing


def fit(model: nn.Module, freezing: Freezing, *, optimizer: str = "adam", **options: Any) -> TrainingState:
    """All that could touch weights is on."""
    made = create_optimizer(
        model,
        optimizer,
        learning_rate=0.01,
        momentum=0.9 if optimizer in ("sgd", "rmsprop") else 0,
        weight_decay=0.1,
        rate_for=rate_factors(model, bias=2.0, classifier=3.0, depth=0.5, freezing=freezing),
        freezing=freezing,
    )
    defaults: dict[str, Any] = {
        "penalty": WeightPenalty(model, l1=1e-4, l2=1e-3),
        "max_norm": MaxNorm(model, limit=0.3),
        "gradient_clip_norm": 1.0,
        "mixup_alpha": 0.2,
        "schedule": Schedule("cosine", warmup_epochs=0.5),
        "callbacks": [Lookahead(every_steps=4), WeightAveraging(decay=0.9), BestWeights(), ReduceOnPlateau(patience=1)],
        "plan": PLANS["whole"],
        # Even batches: each phase is captured once.
        "train": batches(n=48, shuffle=True, augment=True),
        "validation": batches(start=48),
    }
    return train(model, optimizer=made, freezing=freezing, **{**defaults, **options})


class Watch(Callback):
    """Notes what changed in each epoch, by stage, and the rates of each step."""

    def __init__(self) -> None:
        self.changed: list[list[str]] = []
        self.rates: list[dict[int, float]] = []
        self._before: dict[str, torch.Tensor] = {}

    def on_epoch_start(self, state: TrainingState) -> None:
        self._before = {n: v.detach().clone() for n, v in state.model.state_dict().items()}

    def on_batch_end(self, state: TrainingState) -> None:
        self.rates.append({g["joins"]: g["lr"] / g["base_lr"] for g in state.optimizer.param_groups})

    def on_epoch_end(self, state: TrainingState) -> None:
        after = state.model.state_dict()
        names = [n for n, v in self._before.items() if not torch.equal(v, after[n])]
        self.changed.append(sorted({".".join(n.split(".")[: 2 if n.startswith("trunk.") else 1]) for n in names}))


def test_vgg16_has_the_parameters_of_the_book() -> None:
    """Chollet, Deep learning with Python, 2nd edition, 8.3.2: VGG16 under 256 units, on pictures of 150x150."""
    options = {"dense_units": (256,)}
    with torch.device("meta"):
        model = create_model("vgg16", in_channels=3, num_outputs=1, image_size=(150, 150), seed=0, options=options)
    assert sum(p.numel() for p in model.parameters()) == 16_812_353
    assert len(list(model.parameters())) == 30
    Freezing.of(model).prepare(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert (sum(p.numel() for p in trained), len(trained)) == (2_097_665, 4)


@pytest.mark.parametrize(
    ("options", "joins"),
    [
        ({"unfreeze": 0}, [None, None, None]),
        ({"unfreeze": "all"}, [0, 0, 0]),
        ({"unfreeze": 2, "head_epochs": 1}, [None, 1, 1]),
        ({"unfreeze": "block3", "head_epochs": 2}, [None, None, 2]),
        ({"unfreeze": "block2", "head_epochs": 2, "gradual": True}, [None, 3, 2]),
        ({"unfreeze": "all", "head_epochs": 0, "gradual": True}, [2, 1, 0]),
    ],
)
def test_when_stages_join(options: dict[str, Any], joins: list[int | None]) -> None:
    freezing = Freezing.of(staged(), **options)
    assert [stage.name for stage in freezing.stages] == ["block1", "block2", "block3", "head", "classifier"]
    assert [stage.joins for stage in freezing.stages] == [*joins, 0, 0]


def test_what_unfreezes_is_told_by_epoch() -> None:
    freezing = Freezing.of(staged(), unfreeze="block2", head_epochs=2, gradual=True)
    assert freezing.unfreezing(9) == [(2, ["block3"]), (3, ["block2"])]
    assert freezing.unfreezing(3) == [(2, ["block3"])]
    assert freezing.frozen(9) == ["block1"]
    assert freezing.frozen(3) == ["block1", "block2"]
    assert {name.split(".")[1] for name in freezing.trained_parameters(3) if name.startswith("trunk.")} == {"block3"}


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        ("blok3", "no stage 'blok3'.*block3.*block1, block2, block3"),
        (4, "4 stages are to be unfrozen, and 3 have"),
        ("head", "no stage 'head'"),
    ],
)
def test_stages_that_are_not_there_are_named(unfreeze: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Freezing.of(staged(), unfreeze=unfreeze)


def test_stages_behind_a_cut_are_new_and_train_like_the_head() -> None:
    model = staged()
    freezing = Freezing.of(model, unfreeze=1, head_epochs=1, cut="block2")
    assert [(stage.joins, stage.depth) for stage in freezing.stages] == [(None, 2), (1, 1), (0, 0), (0, 0), (0, 0)]
    freezing.prepare(model)
    before = of_trunk(model)
    fit(model, freezing, epochs=1, callbacks=())
    changed = {n for n, v in of_trunk(model).items() if not torch.equal(v, before[n])}
    # Its statistics, too; its bias, which the normalization behind it takes away, has no gradient to speak of.
    assert {n for n in before if n.startswith("trunk.block3")} - {"trunk.block3.conv1.bias"} <= changed
    assert all(n.startswith("trunk.block3") for n in changed)
    with pytest.raises(ModelError, match="cut: the network has no stage 'block4'"):
        Freezing.of(model, cut="block4")


def test_a_model_without_stages_is_refused() -> None:
    with pytest.raises(ModelError, match="does not say which stages"):
        Freezing.of(nn.Sequential(nn.Linear(3, 3)))


def test_parameters_frozen_from_the_start_stay_so() -> None:
    model = staged()
    kernel = next(iter(model.parameters())).requires_grad_(False)
    freezing = Freezing.of(model, unfreeze="all")
    freezing.prepare(model)
    freezing.enter(model, 5)
    assert not kernel.requires_grad
    assert sum(p.requires_grad for p in model.parameters()) == len(list(model.parameters())) - 1


def test_frozen_stages_are_in_evaluation_mode_and_leave_no_graph() -> None:
    model, freezing = prepared(unfreeze=1, head_epochs=1)
    images = torch.rand(4, 1, 8, 8)
    freezing.enter(model, 0)
    features = model.forward_features(images)  # type: ignore[operator]
    assert features.grad_fn is None
    assert torch.equal(features, model.forward_features(images))  # type: ignore[operator] # its dropout is off
    assert model.head.training  # type: ignore[union-attr]
    assert model(images).grad_fn is not None
    assert all(m.training for m in model.head.modules())  # type: ignore[union-attr]
    assert freezing.enter(model, 1)
    assert not freezing.enter(model, 2)
    modes = {n: m.training for n, m in model.named_modules() if isinstance(m, (nn.Dropout, nn.BatchNorm2d))}
    expected = {n: not n.startswith(("trunk.block1", "trunk.block2")) and "dropout" in n for n in modes}
    assert modes == expected


@pytest.mark.parametrize(("policy", "moves"), [("frozen", False), ("trained", True)])
def test_statistics_of_unfrozen_stages_follow_the_policy(policy: Any, moves: bool) -> None:
    model, freezing = prepared(unfreeze=1, batch_norm=policy)
    before = of_trunk(model)
    fit(model, freezing, epochs=1, callbacks=())
    changed = {n for n, v in of_trunk(model).items() if not torch.equal(v, before[n])}
    assert any(n.endswith("running_mean") for n in changed) is moves
    assert all(n.startswith("trunk.block3") for n in changed)
    scales = {n for n in changed if "norm" in n and n.endswith(("weight", "bias"))}
    assert len(scales) == 2


@pytest.mark.parametrize(
    ("optimizer", "plan"), [*((name, "whole") for name in (*OPTIMIZERS, MUON)), ("adamw", "shards")]
)
def test_frozen_weights_and_statistics_keep_their_bits(optimizer: str, plan: str) -> None:
    """Whatever decays, limits, averages or penalizes weights."""
    model, freezing = prepared()
    before, head = of_trunk(model), copy.deepcopy(model.head)
    state = fit(model, freezing, optimizer=optimizer, plan=PLANS[plan])
    after = of_trunk(state.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not equal(head, state.model.head)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", PLANS)
def test_stages_change_from_the_epoch_on_in_which_they_join(plan: str) -> None:
    model, freezing = prepared(unfreeze=2, head_epochs=1, gradual=True)
    watch = Watch()
    fit(model, freezing, plan=PLANS[plan], callbacks=[watch])
    head = ["classifier", "head"]
    one, two = [*head, "trunk.block3"], [*head, "trunk.block2", "trunk.block3"]
    assert watch.changed == [head, one, two, two]


def test_rates_fall_with_depth_beside_all_other_factors() -> None:
    model, freezing = prepared(unfreeze="all", head_epochs=1)
    factors = rate_factors(model, bias=2.0, classifier=3.0, depth=0.5, freezing=freezing)
    assert factors("classifier.weight") == 3.0
    assert factors("head.dense1.weight") == 1.0
    assert [factors(f"trunk.block{i}.conv1.weight") for i in (3, 2, 1)] == [0.5, 0.25, 0.125]
    assert factors("trunk.block2.norm1.bias") == 0.5
    new = rate_factors(model, bias=2.0, classifier=3.0, depth=0.5, new=10.0, freezing=freezing)
    assert [new(f"{name}.weight") for name in ("classifier", "head.dense1", "trunk.block3.conv1")] == [30.0, 10.0, 0.5]
    for name in (*OPTIMIZERS, MUON):
        optimizer = create_optimizer(model, name, learning_rate=0.1, rate_for=factors, freezing=freezing)
        rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates == pytest.approx({id(p): 0.1 * factors(n) for n, p in model.named_parameters()})
        # The first group's rate is the one that is shown: not that of a stage far below.
        assert optimizer.param_groups[0]["base_lr"] >= 0.05


def test_rates_of_stages_that_join_rise_like_those_of_the_beginning() -> None:
    model, freezing = prepared(unfreeze="all", head_epochs=1)
    watch = Watch()
    fit(model, freezing, epochs=3, schedule=Schedule("constant", warmup_epochs=0.5), callbacks=[watch])
    third, two_thirds = pytest.approx(1 / 3), pytest.approx(2 / 3)
    assert [rates[0] for rates in watch.rates] == [third, two_thirds, *[1.0] * 16]
    assert [rates[1] for rates in watch.rates][STEPS_PER_EPOCH:] == [third, two_thirds, *[1.0] * 10]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "rmsprop"])
def test_what_joins_starts_with_an_empty_memory(optimizer: str) -> None:
    """Steps are counted from the first gradient on, so that averages lose their bias as at any training's start."""
    model, freezing = prepared(unfreeze=1, head_epochs=2)
    state = fit(model, freezing, optimizer=optimizer, epochs=3)
    steps = {
        n: int(state.optimizer.state[p]["step"]) for n, p in model.named_parameters() if p in state.optimizer.state
    }
    assert {name.split(".")[1] for name in steps if name.startswith("trunk.")} == {"block3"}
    for name, count in steps.items():
        assert count == (1 if name.startswith("trunk.") else 3) * STEPS_PER_EPOCH


def a_batch() -> Batch:
    return next(iter(batches(n=45, shuffle=True).epoch()))


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("policy", ["frozen", "trained"])
def test_gradients_in_shards_are_those_of_the_whole_batch(epoch: int, policy: Any) -> None:
    model = staged(block_dropout=0.0, dense_dropout=0.0)
    freezing = Freezing.of(model, unfreeze=2, head_epochs=1, gradual=True, batch_norm=policy)
    found = []
    for kind, plan in ((WholeBatchGradients, PLANS["whole"]), (ShardedGradients, PLANS["shards"])):
        replica = copy.deepcopy(model)
        compute: Any = kind(replica, [HEAD], plan=plan, seed=0, label_smoothing=0.0)
        for number in range(epoch + 1):  # through all phases before, as a training does
            if freezing.enter(replica, number):
                compute.renew()
            loss, _ = compute(a_batch(), number)
            if number < epoch:
                replica.load_state_dict(model.state_dict())
        compute.close()
        found.append((loss, {n: p.grad for n, p in replica.named_parameters()}, dict(replica.named_buffers())))
    (loss, gradients, buffers), (divided_loss, divided, divided_buffers) = found
    torch.testing.assert_close(divided_loss, loss)
    has = {name for name, gradient in gradients.items() if gradient is not None}
    assert has == {name for name, gradient in divided.items() if gradient is not None}
    assert {n.split(".")[1] for n in has if n.startswith("trunk.")} == {f"block{4 - i}" for i in range(1, epoch + 1)}
    for name in has:
        torch.testing.assert_close(divided[name], gradients[name], rtol=1e-3, atol=1e-5)
    for name, value in buffers.items():
        torch.testing.assert_close(divided_buffers[name], value)


def test_a_captured_step_computes_no_gradient_of_what_is_frozen() -> None:
    """One backward convolution for each that trains, and the lowest of them asks for no gradient of its input."""
    model, freezing = prepared(unfreeze=2, head_epochs=1, gradual=True)
    for epoch, expected in ((0, 0), (1, 1), (2, 2)):
        freezing.enter(model, epoch)
        graph = capture(model, a_batch(), [HEAD], plan=PLANS["shards"], label_smoothing=0.0, n_shards=1).graph
        backward = [n for n in graph.nodes if n.target == torch.ops.aten.convolution_backward.default]
        assert len(backward) == expected
        if backward:
            assert list(backward[-1].args[-1])[:2] == [False, True]


@pytest.mark.parametrize(
    ("optimizer", "plan"), [*((name, "whole") for name in (*OPTIMIZERS, MUON)), ("adamw", "shards")]
)
@pytest.mark.parametrize("steps", [3, 6, 7, 12, 14])
def test_a_resumed_training_ends_bit_identical(tmp_path: Path, optimizer: str, steps: int, plan: str) -> None:
    """6 steps are one epoch, and a stage joins at steps 6 and 12."""

    def run(**options: Any) -> TrainingState:
        model, freezing = prepared(unfreeze=2, head_epochs=1, gradual=True)
        return fit(model, freezing, optimizer=optimizer, epochs=3, plan=PLANS[plan], **options)

    whole = run()
    path = tmp_path / "checkpoint.safetensors"
    cut = run(checkpointer=Checkpointer(path), interruption=StopAfter(steps))
    assert cut.step == steps
    resumed = run(resume=load_checkpoint(path))
    assert untimed(resumed) == untimed(whole)
    assert equal(resumed.model, whole.model)
    states = [state.optimizer.state_dict()["state"] for state in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][i][k], states[1][i][k]) for i in states[0] for k in states[0][i])


def test_a_training_that_is_extended_past_an_unfreezing_is_the_long_one(tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> TrainingState:
        model, freezing = prepared(unfreeze="all", head_epochs=1, gradual=True)
        changes: dict[str, Any] = {"schedule": Schedule(), "callbacks": ()}
        return fit(model, freezing, epochs=epochs, **changes, **options)

    path = tmp_path / "checkpoint.safetensors"
    run(2, checkpointer=Checkpointer(path))
    extended, whole = run(4, resume=load_checkpoint(path)), run(4)
    assert untimed(extended) == untimed(whole)
    assert equal(extended.model, whole.model)


def test_afterwards_all_that_ever_trains_requires_gradients_again() -> None:
    """So that an optimizer made later, or a summary, is of the same parameters."""
    model, freezing = prepared(unfreeze=2, head_epochs=5)
    fit(model, freezing, epochs=1)
    assert {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad} == {"block1"}


def test_the_penalty_and_the_limit_are_on_what_trains() -> None:
    model, freezing = prepared(unfreeze=1, head_epochs=1)
    penalty = WeightPenalty(model, l2=1.0)
    kernels = {n: p.detach().square().sum().item() for n, p in model.named_parameters() if p.ndim > 1}
    freezing.enter(model, 0)
    head = sum(v for n, v in kernels.items() if not n.startswith("trunk."))
    assert penalty.value() == pytest.approx(head)
    freezing.enter(model, 1)
    assert penalty.value() == pytest.approx(head + kernels["trunk.block3.conv1.weight"])
