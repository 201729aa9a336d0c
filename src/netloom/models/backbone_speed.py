"""How long a network of the list takes for a picture: a rule with two rates, and the rates of a machine.

Time is arithmetic plus memory traffic: multiply-adds over one rate, numbers written by all operations over another.
One core of an AVX2 server, 40 networks of the list, float32: the rule with these two rates fitted was 0.79 to 1.17
times what was measured, with multiply-adds alone 0.36 to 1.38 times, too low for all small networks, since what is
done between their convolutions costs more than these.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netloom.models.backbone_list import Backbone
from netloom.runtime import keep_freed_memory, on_device

TRAINING_COST = 4
"""Forward passes that a training step costs: of 27 listed networks that timm publishes both rates of, 1.9 to 6.5
times, 3.9 in the middle."""
_REPEATS = 5
_BATCH, _SIDE, _CHANNELS = 16, 28, 128


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Attributes:
        multiply_adds: Of convolutions and products of matrices.
        written_values: Numbers that operations write.
        machine: Which machine, for people.
    """

    multiply_adds: float
    written_values: float
    machine: str

    def seconds(self, backbone: Backbone, pictures: int) -> float:
        """Expected time of one forward pass over `pictures`."""
        each = backbone.multiply_adds / self.multiply_adds + backbone.written_values / self.written_values
        return pictures * each


PUBLISHED_GPU = Speed(47e12, 167e9, "a GPU like NVIDIA's RTX 3090")
"""Fitted to timm's published throughputs (results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv, mixed precision) of
the listed networks: the rule is 0.5 to 2.1 times those."""


def measure_cpu(threads: int) -> Speed:
    """The rates of this machine's processor in float32, from about half a second of work.

    Convolutions of 3x3 and 1x1 stand for arithmetic; a depthwise one, a batch norm and a SiLU for what networks do
    between. The fastest of several repetitions counts, so that other work on the machine changes little.
    """
    keep_freed_memory()
    wide = 4 * _CHANNELS
    arithmetic = nn.Sequential(
        nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1), nn.Conv2d(_CHANNELS, wide, 1), nn.Conv2d(wide, _CHANNELS, 1)
    )
    between = nn.Sequential(
        nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, groups=_CHANNELS), nn.BatchNorm2d(_CHANNELS), nn.SiLU()
    )
    places = _BATCH * _SIDE * _SIDE
    multiply_adds = places * (9 * _CHANNELS**2 + 2 * _CHANNELS * wide)
    x = torch.ones(_BATCH, _CHANNELS, _SIDE, _SIDE).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return Speed(
            multiply_adds / _fastest(arithmetic, x),
            3 * x.numel() / _fastest(between, x),
            f"this machine, {threads} {'thread' if threads == 1 else 'threads'}",
        )
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _fastest(layers: nn.Sequential, x: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of some passes, behind one to warm up."""
    net = on_device(layers.eval(), "cpu")
    times = []
    for _ in range(_REPEATS + 1):
        start = clock()
        net(x)
        times.append(clock() - start)
    return min(times[1:])
