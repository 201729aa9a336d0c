"""How long a network of the list takes for a picture: a rule with two rates, and the rates of a machine.

Time is arithmetic plus memory traffic: multiply-adds over one rate, numbers written by all operations over another.
39 listed networks, one core of an AVX2 server, float32: with the two rates that fit best (39 thousand million
multiply-adds and 0.9 thousand million numbers a second) the rule gives 0.78 to 1.22 times the measured time, with those
that `measure_cpu` finds in a second 0.78 to 1.39 times. Multiply-adds alone give 0.35 to 1.34 times, too little for all
small networks, since what they do between convolutions costs more than these.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from netloom.models.backbone_list import Backbone
from netloom.runtime import keep_freed_memory, on_device

TRAINING_COST = 4
"""Forward passes that a training step costs: 1.9 to 6.5, in the middle 3.9, by timm's published rates of the 22 listed
networks that it tells both of."""
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


PUBLISHED_GPU = Speed(44e12, 114e9, "a GPU like NVIDIA's RTX 3090")
"""In mixed precision, fitted to what timm publishes (results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv): of 37
listed networks the rule gives 0.6 to 1.8 times the published time, in the middle as long."""


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
