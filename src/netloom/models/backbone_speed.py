"""How long a network of the list takes for a picture: a rule with two rates, and the rates of a machine.

Time is arithmetic plus memory traffic: multiply-adds over one rate, numbers written by all operations over another.
One core of an AVX2 server, 40 networks of the list, float32: the rule with these two rates fitted was 0.79 to 1.17
times what was measured, with multiply-adds alone 0.36 to 1.38 times, too low for all small networks, since what is
done between their convolutions costs more than these.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from netloom.models.backbone_list import Backbone
from netloom.runtime import keep_freed_memory, on_device

TRAINING_COST = 4
"""Forward passes that a training step costs: of 27 listed networks that timm publishes both rates of, 1.9 to 6.5
times, 3.9 in the middle."""
_GAIN_OF_THREAD = 0.8
"""What each further thread adds: less than the first, since threads share memory and processors' clocks slow down."""
_REPEATS, _SHORTEST_SECONDS = 3, 0.12
_BATCH, _SIDE, _CHANNELS = 8, 28, 128


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
    """The rates of this machine's processor in float32 for `threads` threads, from about a second of work.

    Convolutions of 3x3 and 1x1 stand for arithmetic; a depthwise one, a batch norm and a SiLU for what networks do
    between. One thread is measured, by the time that the processor gave to it, since on a busy machine several threads
    wait for each other, up to 50 times as long: the time expected is that of a machine that does nothing else.
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
    together = 1 + (threads - 1) * _GAIN_OF_THREAD
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Speed(
            together * multiply_adds / _pass_seconds(arithmetic),
            together * 3 * places * _CHANNELS / _pass_seconds(between),
            f"this machine with {threads} {'thread' if threads == 1 else 'threads'}",
        )
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _pass_seconds(layers: nn.Sequential) -> float:
    """Processor seconds of a pass: the fewest of some repetitions, each long enough for clocks of 16 ms."""
    net = on_device(layers.eval(), "cpu")
    x = torch.ones(_BATCH, _CHANNELS, _SIDE, _SIDE).contiguous(memory_format=torch.channels_last)
    net(x)
    times = []
    for _ in range(_REPEATS):
        start, passes = time.thread_time(), 0
        while (spent := time.thread_time() - start) < _SHORTEST_SECONDS:
            net(x)
            passes += 1
        times.append(spent / passes)
    return min(times)
