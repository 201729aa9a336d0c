"""Parts for what lies between convolutions, and for dense layers, against torch."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from netloom.kernels import llvm, parts
from netloom.kernels.calls import CallSequence, PartCall
from netloom.randomness import words

aten = torch.ops.aten
THREADS = 3


@pytest.fixture(params=[8, 16], autouse=True)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Registers of so many numbers, whatever this processor has."""
    found: int = request.param
    monkeypatch.setattr(llvm, "lanes_here", lambda: found)
    return found


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, height: int, width: int, channels: int, seed: int = 1) -> torch.Tensor:
    return numbers(n, height, width, channels, seed=seed).permute(0, 3, 1, 2)


def between(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory with marks before and behind room for such a value, and that room."""
    memory = torch.full((value.numel() + 64,), 77.0)
    return memory, memory.as_strided(value.shape, value.stride(), 32)


def run(make: Callable[[int], PartCall], *given: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs, which no number of threads changes, and beside which nothing is written."""
    found = []
    for n_threads in (1, THREADS, 2, 1):
        rooms = [between(output) for output in outputs]
        make(n_threads).run(*given, *(room for _, room in rooms))
        for memory, room in rooms:
            assert (memory == 77.0).sum() >= memory.numel() - room.numel()
            assert torch.equal(memory[:32], torch.full((32,), 77.0))
            assert torch.equal(memory[-32:], torch.full((32,), 77.0))
        found.append([room.clone() for _, room in rooms])
    for other in found[1:]:
        assert all(torch.equal(a.nan_to_num(5), b.nan_to_num(5)) for a, b in zip(other, found[0], strict=True))
    return found[0]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit, no numbers included."""
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(5), expected.nan_to_num(5))


@pytest.mark.parametrize("n", [1, 13, 5000])
def test_element_wise_operations_are_torchs(n: int) -> None:
    a, b = numbers(n), numbers(n, seed=2)
    a[0], b[n // 2] = math.nan, math.inf
    like = [torch.empty(n)]
    (rectified,) = run(lambda t: parts.relu(n, t), a, outputs=like)
    assert_same(rectified, a.relu())
    (gradient,) = run(lambda t: parts.relu_gradient(n, t), b, rectified, outputs=like)
    assert_same(gradient, aten.threshold_backward(b, rectified, 0))
    assert_same(run(lambda t: parts.multiply(n, t), a, b, outputs=like)[0], a * b)
    assert_same(run(lambda t: parts.add(n, t), a, b, outputs=like)[0], a + b)


@pytest.mark.parametrize(("n", "rows", "columns"), [(3, 36, 64), (2, 49, 8), (2, 7, 13), (1, 1, 20), (5, 8, 1)])
def test_a_turn_exchanges_rows_and_columns(n: int, rows: int, columns: int) -> None:
    values = numbers(n, rows, columns)
    (turned,) = run(lambda t: parts.turn(n, rows, columns, t), values, outputs=[torch.empty(n, columns, rows)])
    assert torch.equal(turned, values.transpose(1, 2))


@pytest.mark.parametrize(("rows", "channels"), [(1, 5), (3, 32), (700, 24), (4099, 19)])
def test_sums_over_rows(rows: int, channels: int) -> None:
    values = numbers(rows, channels)
    (sums,) = run(lambda t: parts.sum_rows(rows, channels, t), values, outputs=[torch.empty(channels)])
    torch.testing.assert_close(sums.double(), values.double().sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("n", "height", "width", "channels"), [(3, 6, 8, 32), (2, 5, 7, 10), (1, 2, 2, 1), (2, 9, 3, 24)]
)
def test_pooling_and_its_gradient_are_torchs(n: int, height: int, width: int, channels: int, relu: bool) -> None:
    images = pictures(n, height, width, channels).round(decimals=1)  # so that there are equal ones
    images[0, 0, 0, 1] = math.nan
    maxima, indices = aten.max_pool2d_with_indices(images, [2, 2], [2, 2])
    expected = maxima.relu() if relu else maxima
    places = torch.empty(-(-maxima.numel() // 4))
    outputs = [torch.empty_like(maxima), places]
    sizes = (n, height, width, channels)
    found, where = run(lambda t: parts.pool(*sizes, t, relu=relu), images, outputs=outputs)
    assert_same(found, expected)
    gradient = pictures(n, height // 2, width // 2, channels, seed=2)
    through = aten.threshold_backward(gradient, expected, 0) if relu else gradient
    wanted = aten.max_pool2d_with_indices_backward(through, images, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
    like = [torch.empty_like(images)]
    (of_images,) = run(lambda t: parts.pool_gradient(*sizes, t), gradient, where, outputs=like)
    assert_same(of_images, wanted)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(32, 784, 30), (7, 13, 5), (1, 1, 1), (25, 33, 64), (12, 16, 0), (13, 40, 300)]
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_products_of_matrices(m: int, n: int, k: int, transposed: bool, biased: bool) -> None:
    a = numbers(k, m).t() if transposed else numbers(m, k)
    b, bias = numbers(k, n, seed=2), numbers(m, seed=3) if biased else None
    exact = a.double() @ b.double() + (bias.double()[:, None] if bias is not None else 0.0)
    for relu in (False, True):

        def make(n_threads: int, relu: bool = relu) -> PartCall:
            return parts.product(m, n, k, a_strides=a.stride(), b_row=n, n_threads=n_threads, relu=relu)

        (found,) = run(make, a, b, bias, outputs=[torch.empty(m, n)])
        torch.testing.assert_close(found.double(), exact.relu() if relu else exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "channels", "mean"), [(2, 5, 0.0), (97, 32, 3.0), (5000, 19, 100.0), (300, 48, -1.0)])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_normalization_and_its_gradients(rows: int, channels: int, mean: float, affine: bool) -> None:
    values, gradient = numbers(rows, channels) + mean, numbers(rows, channels, seed=2)
    weight, bias = (numbers(channels, seed=3), numbers(channels, seed=4)) if affine else (None, None)
    of_channels = [torch.empty(channels)] * 3
    outputs, means, inverse, variance = run(
        lambda t: parts.batch_norm(rows, channels, 1e-5, t),
        *(values, weight, bias),
        outputs=[torch.empty_like(values), *of_channels],
    )
    exact = [None if v is None else v.double() for v in (values, weight, bias)]
    expected = aten.native_batch_norm(*exact, None, None, True, 0.1, 1e-5)
    tolerance = {"rtol": 1e-5 * (1 + abs(mean)), "atol": 1e-6 * (1 + abs(mean))}
    for found, wanted in zip((outputs, means, inverse), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, **tolerance)
    torch.testing.assert_close(variance.double(), values.double().var(0), rtol=1e-4, atol=1e-6)
    found = run(
        lambda t: parts.batch_norm_gradient(rows, channels, t),
        *(gradient, values, weight, means, inverse),
        outputs=[torch.empty_like(values), *of_channels[:2]],
    )
    wanted = aten.native_batch_norm_backward(
        gradient.double(), exact[0], exact[1], None, None, *expected[1:], True, 1e-5, [True, True, True]
    )
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * (1 + abs(mean)) * rows**0.5}
    for mine, their in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), their, **tolerance)


def test_a_sequence_of_calls_is_what_they_do_one_by_one() -> None:
    a, b = numbers(6, 40), numbers(6, 40, seed=2)
    total, turned, sums = torch.empty(6, 40), torch.empty(40, 6), torch.empty(6)
    calls = [
        (parts.add(240, THREADS), [a.data_ptr(), b.data_ptr(), total.data_ptr()]),
        (parts.turn(1, 6, 40, THREADS), [total.data_ptr(), turned.data_ptr()]),
        (parts.sum_rows(40, 6, THREADS), [turned.data_ptr(), sums.data_ptr()]),
    ]
    sequence = CallSequence(calls, THREADS)
    for other in (b, a):
        sequence.put(0, 1, other.data_ptr())
        sequence.run()
        torch.testing.assert_close(sums, (a + other).sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (32, 10), (20, 3), (45, 1), (130, 100)])
@pytest.mark.parametrize("spread", [1.0, 30.0, 1e30])
def test_cross_entropy_and_its_gradient(n: int, classes: int, spread: float) -> None:
    logits = (numbers(n, classes) * spread).round(decimals=1)
    logits[0] = 0.0  # equal ones: the first is the prediction
    target = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(1))
    share = torch.tensor(0.5)
    loss, gradient, correct = torch.empty(()), torch.empty(classes, n), torch.empty(2)
    gradient, loss, correct = run(
        lambda t: parts.cross_entropy(n, classes, 3.0, t),
        *(logits.t().contiguous(), target, share),
        outputs=[gradient, loss, correct],
    )
    exact = logits.double().requires_grad_()
    expected = 1.5 * torch.nn.functional.cross_entropy(exact, target)
    expected.backward()
    assert exact.grad is not None
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double().t(), exact.grad, rtol=1e-5, atol=1e-8)
    assert correct.view(torch.int64).item() == (logits.argmax(1) == target).sum()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_cross_entropy_of_what_is_no_number_is_none(value: float) -> None:
    logits = numbers(20, 4)
    logits[7, 2] = value
    outputs = [torch.empty(4, 20), torch.empty(()), torch.empty(2)]
    given = (logits.t().contiguous(), torch.zeros(20, dtype=torch.int64), torch.ones(()))
    gradient, loss, _ = run(lambda t: parts.cross_entropy(20, 4, 1.0, t), *given, outputs=outputs)
    assert loss.isnan()
    assert gradient[:, 7].isnan().all()
    assert gradient.isnan().sum() == 4


def test_a_target_that_is_no_class_gives_a_loss_that_is_no_number() -> None:
    outputs = [torch.empty(4, 5), torch.empty(()), torch.empty(2)]
    for target in (-100, 4, 2**62):
        given = (numbers(4, 5), torch.full((5,), target), torch.ones(()))
        _, loss, correct = run(lambda t: parts.cross_entropy(5, 4, 1.0, t), *given, outputs=outputs)
        assert loss.isnan()
        assert correct.view(torch.int64).item() == 0


@pytest.mark.parametrize("n", [1, 31, 32, 5000])
@pytest.mark.parametrize("keep", [0.25, 0.9])
def test_masks_are_those_of_random_words(n: int, keep: float) -> None:
    level = round(keep * 2**16) - 2**15
    outputs = [torch.empty(parts.mask_numbers(n))]
    key = 2**63 - 7
    (mask,) = run(lambda t: parts.mask(n, key, level, 1.5, t), outputs=outputs)
    bits = torch.from_numpy(words(key, (n + 3) // 4).view(np.int16)[:n])
    assert torch.equal(mask[:n], torch.where(bits < level, 1.5, 0.0))


def test_wide_normalizations_need_no_more_stack() -> None:
    rows, channels = 256, 16_384
    values, of_channels = numbers(rows, channels), [torch.empty(channels)] * 3
    outputs = [torch.empty_like(values), *of_channels]
    outputs, *_ = run(lambda t: parts.batch_norm(rows, channels, 1e-5, t), values, None, None, outputs=outputs)
    assert outputs.double().mean(0).abs().max() < 1e-5


def test_rooms_are_of_single_precision_whatever_is_the_default() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        call = parts.sum_rows(100, 64, 1)
        assert call.room().dtype == torch.float32
        assert CallSequence([(call, [0, 0])], 1)._rooms[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_a_sequence_keeps_its_machine_code() -> None:
    values, sums = numbers(8, 5), torch.empty(5)
    sequence = CallSequence([(parts.sum_rows(8, 5, 1), [values.data_ptr(), sums.data_ptr()])], 1)
    programs = [call.program for call in sequence._calls]
    parts._values.forget()  # type: ignore[attr-defined]
    gc.collect()
    assert gc.get_referrers(programs[0])
    del programs
    gc.collect()
    sequence.run()
    torch.testing.assert_close(sums, values.sum(0))
