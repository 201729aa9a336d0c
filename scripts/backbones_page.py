"""The page of the listed backbones, from the list that the program itself shows."""

from __future__ import annotations

import textwrap

from netloom.models.backbone_list import Backbone, listed_backbones, published_sources

INTRODUCTION = """
Pretrained networks that are worth trying on hundreds to thousands of pictures; any other of timm's classification
networks can be named, too ([transfer](transfer.md)). `netloom backbones` shows this list with the time that each takes
on your machine and says which one to take; `--fits cpu` or `--fits gpu` keeps those that take at most two minutes, a
source or `--pictures N` tells for how many pictures.
"""
COLUMNS = (
    "**params**: millions of parameters without the classifier; VGG's dense layers are left out.",
    "**GMACs**: thousand million multiply-adds for one picture of that **size**, side in pixels; `224 of 518` is a "
    "smaller size than the network's own, given by `--set image_size=224`.",
    "**features**: numbers per picture that a classifier sees.",
    "**top-1**: percent of ImageNet-1k's 50,000 validation pictures, as published: of the network's own classifier; "
    "*linear*: of a linear probe on frozen features; *zero-shot*: with names of classes as text. It goes with accuracy "
    "on other pictures (Kornblith et al., 2019), though not exactly: label smoothing, for one, raises it and makes "
    "features that transfer worse (Kornblith et al., 2021).",
    "**licence**: of the weights, as timm tells it. `cc-by-nc-4.0` forbids commercial use; `mobileone-license` and "
    "`dinov3-license` have conditions of their own. Such networks are listed, never recommended.",
)
TIMES = """
A network's time is that of its multiply-adds and of the numbers that its operations write, each over a rate. For the
CPU both rates are measured on your machine in about a second, on one thread and by the processor's clock, so that
other work does not count; each further thread counts for 0.8 of one. Of 39 listed networks on one core of an AVX2
server the rule gave 0.78 to 1.39 times the measured time in float32; multiply-adds alone would give 0.35 to 1.34
times. The time is that of the features of all pictures, once, without decoding. For a GPU, rates are those of an RTX
3090 as timm publishes them (0.6 to 1.8 times the published time), and the time is that of ten epochs of fine-tuning,
each step as long as four forward passes.
"""


def backbones_page(note: str) -> str:
    """The table of the listed backbones, and what its columns mean."""
    header = ("backbone", "weights", "size", "params", "GMACs", "features", "top-1", "trained on", "licence")
    lines = [
        "# Backbones",
        "",
        note,
        wrapped(INTRODUCTION),
        "",
        *(wrapped(column, bullet="- ") for column in COLUMNS),
        "",
        f"| {' | '.join(header)} |",
        "|---|---|---:|---:|---:|---:|---:|---|---|",
        *(f"| {' | '.join(cells(found))} |" for found in listed_backbones()),
        "",
        "Where the accuracies come from:",
        "",
        *(wrapped(f"{source}.", bullet="- ") for source in published_sources()),
        "",
        "## How times are reckoned",
        "",
        wrapped(TIMES),
    ]
    return "\n".join(lines) + "\n"


def cells(found: Backbone) -> tuple[str, ...]:
    """A row of the table."""
    own = "" if found.image_size == found.own_size else f" of {found.own_size}"
    how = {"linear probe": " linear", "zero-shot": " zero-shot"}.get(found.top1_by or "", "")
    return (
        f"`{found.name}`",
        f"`{found.weights}`",
        f"{found.image_size}{own}",
        f"{found.parameters / 1e6:.1f}",
        f"{found.multiply_adds / 1e9:.2f}",
        f"{found.features:,}",
        "" if found.top1 is None else f"{found.top1:.1f}{how}",
        found.pretraining,
        found.licence,
    )


def wrapped(text: str, *, bullet: str = "") -> str:
    """Text in lines of at most 112 characters, the first behind a bullet."""
    return textwrap.fill(
        " ".join(text.split()),
        112,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
