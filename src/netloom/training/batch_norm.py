"""Batch normalization whose statistics are those of the whole batch, though each shard of it is computed apart."""

from __future__ import annotations

from typing import Any

import torch

_library = torch.library.Library("netloom", "DEF")  # type: ignore[no-untyped-call]
_library.define("gather_shards(Tensor part, int n_shards) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "gather_shards", "CompositeExplicitAutograd")
def _gather_shards(part: torch.Tensor, n_shards: int) -> torch.Tensor:
    """What stands in the graph where shards meet; run on its own it behaves as if all of them were equal."""
    return torch.stack([part] * n_shards)


def gather_shards(part: torch.Tensor, n_shards: int) -> torch.Tensor:
    """The parts of all shards in their order, `[n_shards, *part.shape]`."""
    return torch.ops.netloom.gather_shards(part, n_shards)  # type: ignore[no-any-return]


class _BatchNorm(torch.autograd.Function):
    """The formulas of Ioffe and Szegedy (2015); the shards' variances are joined as Chan et al. (1979) do."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        n_shards: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        zeros = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        ctx.eps, ctx.n_shards, ctx.has_bias = eps, n_shards, bias is not None
        if n_shards == 1:  # as torch does it: running statistics with momentum 1 are the batch's
            mean, unbiased = zeros, torch.zeros_like(zeros)
            y, *of_batch = torch.ops.aten.native_batch_norm(x, weight, bias, mean, unbiased, True, 1.0, eps)
            ctx.save_for_backward(x, weight, *of_batch)
            ctx.mark_non_differentiable(mean, unbiased)
            return y, mean, unbiased
        # `var_mean` over these dimensions of channels-last memory takes sixteen times as long.
        # With running statistics, which momentum 0 leaves, those of bfloat16 come in float32.
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, zeros, torch.zeros_like(zeros), 0.0)
        count = x.numel() // x.shape[1]
        parts = gather_shards(torch.stack([mean, variance * count, torch.full_like(mean, count)]), n_shards)
        means, squares, counts = parts.unbind(1)
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        squared = (squares + counts * (means - mean) ** 2).sum(0)
        variance = squared / total
        y = torch.ops.aten.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        unbiased = squared / (total - 1)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0]
        if ctx.n_shards == 1:
            x, weight, mean, inverse = ctx.saved_tensors
            of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, None, None, mean, inverse, True, ctx.eps, [True, weight is not None, ctx.has_bias]
            )
            return of_x, of_weight if weight is not None else None, of_bias if ctx.has_bias else None, None, None
        x, weight, mean, variance, total = ctx.saved_tensors
        unscaled = torch.ones_like(mean) if weight is None else weight  # for the kernel, whose sums are wanted anyway
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, unscaled, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        sums = gather_shards(torch.stack([of_weight, of_bias]).float(), ctx.n_shards).sum(0)
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight.float()
        slope = -scale * inverse * sums[0] / total
        shift = -scale * sums[1] / total - slope * mean
        shape = (1, -1, *[1] * (x.ndim - 2))
        of_x = gradient * scale.view(shape).to(gradient.dtype)
        of_x.addcmul_(x, slope.view(shape).to(x.dtype)).add_(shift.view(shape).to(x.dtype))
        return of_x, None if weight is None else of_weight, of_bias if ctx.has_bias else None, None, None


def sharded_batch_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, n_shards: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalize a shard `[b, C, ...]` by the statistics of the whole batch.

    Returns the normalized shard, and mean and unbiased variance of the batch, float32 `[C]`.
    """
    return _BatchNorm.apply(x, weight, bias, eps, n_shards)  # type: ignore[no-any-return, no-untyped-call]
