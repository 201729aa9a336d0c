"""Test-time augmentation against its definition, written out with NumPy; many batches, against the network itself."""

from __future__ import annotations

import linecache
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from netloom import inference
from netloom.data.batches import Batch
from netloom.errors import ModelError
from netloom.inference import Prediction, TestTimeAugmentation, augmented_views, predict_outputs
from netloom.runtime import ExecutionPlan

PLAN = ExecutionPlan("cpu", 1, "float32")


def pictures(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, 6, 7, generator=torch.Generator().manual_seed(0))


class Weighted(nn.Module):
    """A nonlinear network that sees where things are."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3 * 42, 4, generator=torch.Generator().manual_seed(1)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tanh(image.flatten(1) @ self.kernel)


def moved(images: np.ndarray, by: int) -> np.ndarray:
    """Rows and columns read `by` further on, the border repeated."""
    rows = np.clip(np.arange(6) + by, 0, 5)
    columns = np.clip(np.arange(7) + by, 0, 6)
    return images[:, :, rows][:, :, :, columns]


def outputs(kind: str, model: nn.Module | None = None) -> np.ndarray:
    batches = [Batch({"image": part}, {}) for part in pictures().split(2)]
    found = predict_outputs(
        model or Weighted(),
        batches,
        head_names=["label"],
        plan=PLAN,
        test_time_augmentation=kind,  # type: ignore[arg-type]
    )
    return found["label"].numpy()


def of(images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Weighted()(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def test_flips_average_the_outputs_of_both_sides() -> None:
    x = pictures().numpy()
    assert outputs("flip") == pytest.approx((of(x) + of(x[..., ::-1])) / 2, abs=1e-6)


def test_shifts_weigh_as_much_as_the_unmoved_pair() -> None:
    x = pictures().numpy()
    pairs = [(of(v) + of(v[..., ::-1])) / 2 for v in (x, moved(x, -1), moved(x, 1))]
    assert outputs("flip_shift") == pytest.approx(pairs[0] / 2 + pairs[1] / 4 + pairs[2] / 4, abs=1e-6)


def test_none_is_the_picture_alone() -> None:
    assert np.array_equal(outputs("none"), np.concatenate([of(part.numpy()) for part in pictures().split(2)]))


def test_a_network_that_does_not_see_places_is_left_as_it_is() -> None:
    means = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert outputs("flip", means) == pytest.approx(outputs("none", means), abs=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("flip", 2), ("flip_shift", 6)])
def test_weights_sum_to_one(kind: str, count: int) -> None:
    views = augmented_views(pictures(), kind)  # type: ignore[arg-type]
    assert len(views) == count
    assert sum(weight for weight, _ in views) == 1.0
    assert all(view.shape == pictures().shape for _, view in views)


def test_mistakes_are_told() -> None:
    with pytest.raises(ModelError, match="'flop' is unknown: one of none, flip, flip_shift"):
        outputs("flop")
    batch = Batch({"table": torch.zeros(2, 3)}, {})
    with pytest.raises(ModelError, match="needs an input 'image'; there are table"):
        predict_outputs(nn.Linear(3, 1), [batch], head_names=["y"], plan=PLAN, test_time_augmentation="flip")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    model[1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr,operator]
    return model.eval()


def many_batches(n: int = 3, size: int = 40) -> list[Batch]:
    """Each of two pieces and more."""
    generator = torch.Generator().manual_seed(2)
    return [Batch({"image": torch.randn(size, 3, 128, 128, generator=generator)}, {}) for _ in range(n)]


def predicted(
    model: nn.Module, batches: list[Batch], *, threads: int = 3, shards: int = 0, **options: Any
) -> torch.Tensor:
    plan = ExecutionPlan("cpu", threads, "float32", shards=shards)
    return predict_outputs(model, batches, head_names=["label"], plan=plan, **options)["label"]


class Spied(nn.Module):
    """Notes the sizes of the batches that it sees itself; a graph calls only what is inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.sizes: list[int] = []
        self.register_forward_pre_hook(lambda module, inputs: self.sizes.append(len(inputs[0])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_many_batches_give_what_the_network_gives() -> None:
    model, batches = network(), many_batches()
    with torch.no_grad():
        expected = torch.cat([model(batch.inputs["image"]) for batch in batches])
    assert torch.allclose(predicted(model, batches), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "flip_shift"])
def test_outputs_are_the_same_bits_for_every_number_of_threads(kind: TestTimeAugmentation) -> None:
    found = [
        predicted(network(), many_batches(), threads=threads, shards=shards, test_time_augmentation=kind)
        for threads, shards in ((1, 0), (2, 0), (3, 0), (1, 4))
    ]
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_threads_take_pieces_of_the_folded_network(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[str, int]] = []
    calls = inference._Task.__call__

    def noted(task: inference._Task, model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if isinstance(model, fx.GraphModule):
            sizes.append((threading.current_thread().name.split("_")[0], len(inputs["image"])))
        return calls(task, model, inputs)

    monkeypatch.setattr(inference._Task, "__call__", noted)
    predicted(network(), many_batches())
    by_threads = [size for thread, size in sizes if thread == "netloom-predict"]
    assert sum(by_threads) == 120
    assert {size * 128 * 128 <= 2**18 for size in by_threads} == {True}


def test_one_batch_goes_through_the_network_itself() -> None:
    model, batches = network(), many_batches(1)
    assert torch.equal(predicted(model, batches), model(batches[0].inputs["image"]).detach())


def test_a_network_with_hooks_sees_whole_batches() -> None:
    model = Spied(network())
    predicted(model, many_batches())
    assert model.sizes == [40, 40, 40]


class Compared(nn.Module):
    """Subtracts the mean over the batch, as no network should."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.model(x)
        return y - y.mean(0)


class Drawing(nn.Module):
    """Multiplies with a random number in evaluation mode, which a graph would draw once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * float(torch.rand(()))


@pytest.mark.parametrize("make", [Compared, Drawing])
def test_networks_that_are_not_what_their_graph_tells(make: Callable[[], nn.Module]) -> None:
    batches = many_batches()
    torch.manual_seed(3)
    assert inference._folded(make().eval(), batches[0].inputs, inference._Task(["label"], PLAN, "none")) is None
    assert inference._folded(network(), batches[0].inputs, inference._Task(["label"], PLAN, "none")) is not None


def test_each_module_gets_its_own_mode_back() -> None:
    model = network().train()
    model[1].eval()
    for batches in (many_batches(1), many_batches()):
        predicted(model, batches)
        assert [module.training for module in model] == [True, False, True, True, True, True]


def test_batches_come_in_order_with_their_outputs() -> None:
    model, batches, seen = network(), many_batches(4, 20), []

    def watch(hook: str, prediction: inference.Prediction) -> None:
        if hook == "on_predict_batch_end":
            seen.append((prediction.batches, prediction.pictures, prediction.outputs["label"]))

    found = predicted(model, batches, watch=watch)
    assert [(number, pictures) for number, pictures, _ in seen] == [(1, 20), (2, 40), (3, 60), (4, 80)]
    assert torch.equal(torch.cat([outputs for _, _, outputs in seen]), found)


def test_an_error_in_a_thread_is_told_and_ends_all_threads() -> None:
    batches = [*many_batches(), Batch({"image": torch.zeros(40, 4, 128, 128)}, {})]
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="channels"):
        predicted(network(), batches)
    assert torch.get_num_threads() == threads
    assert not [t for t in threading.enumerate() if t.name.startswith("netloom-predict")]


def test_inputs_that_are_no_pictures_stay_whole() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    batches = [Batch({"table": torch.randn(50, 3)}, {}) for _ in range(3)]
    with torch.no_grad():
        expected = torch.cat([model(batch.inputs["table"]) for batch in batches])
    assert torch.allclose(predicted(model, batches), expected, atol=1e-6)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.other = network(), nn.Linear(2, 5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.model(image)
        return {"sum": y + self.other(table), "difference": y - self.other(table)}


def test_several_inputs_and_heads() -> None:
    model = TwoHeads().eval()
    generator = torch.Generator().manual_seed(4)
    batches = [Batch({**b.inputs, "table": torch.randn(40, 2, generator=generator)}, {}) for b in many_batches()]
    heads = ["sum", "difference"]
    found = predict_outputs(model, batches, head_names=heads, plan=ExecutionPlan("cpu", 2, "float32"))
    with torch.no_grad():
        expected = [model(**batch.inputs) for batch in batches]
    for head in heads:
        assert torch.allclose(found[head], torch.cat([one[head] for one in expected]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", ["fold", "replace_pooling", "fuse_convolutions"])
def test_where_rewriting_fails_the_network_itself_predicts(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a graph has become by then."""

    def half_done(graph: nn.Module, *_: Any) -> None:
        if isinstance(graph, fx.GraphModule):
            for node in list(graph.graph.nodes)[1:]:
                node.args = ()
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(inference, step, half_done)
    model, batches = network(), many_batches()
    expected = torch.cat([model(batch.inputs["image"]).detach() for batch in batches])
    assert torch.equal(predicted(model, batches), expected)


def test_sources_of_graphs_are_not_kept() -> None:
    """torch keeps the source of every graph it compiles, and each pass folds the network anew."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
    held = fx.graph_module._loader.eval_cache  # type: ignore[attr-defined]
    before = set(held)
    assert inference._folded(model.eval(), {"image": pictures()}, inference._Task(["label"], PLAN, "none")) is not None
    for _ in range(3):
        outputs("none", model)
    assert set(held) == before
    assert not {name for name in linecache.cache if name not in before and "eval_with_key" in name}


def test_outputs_lie_in_one_block_of_memory() -> None:
    """Kept as they come, they would lie between what batches take, which no later batch could take as a whole."""
    outputs: list[torch.Tensor] = []

    def watch(hook: str, prediction: Prediction) -> None:
        if hook == "on_predict_batch_end":
            outputs.append(prediction.outputs["label"])

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    inputs = torch.randn(3000, 1, 2, 2)
    batches = [Batch({"image": part}, {}, None) for part in inputs.split(64)]
    plan = ExecutionPlan("cpu", 1, "float32")
    found = predict_outputs(model, batches, head_names=["label"], plan=plan, watch=watch)["label"]
    assert torch.equal(torch.cat(outputs), found)
    torch.testing.assert_close(found, model(inputs))
    assert len({one.untyped_storage().data_ptr() for one in outputs}) == 3  # of 1,024, 2,048 and 4,096 rows
    assert predict_outputs(model, [], head_names=["label"], plan=plan)["label"].shape == (0, 0)
