"""What is measured: benchmarks, their cases, and who takes part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.suite.networks import NETWORKS, PHOTOS

Case = dict[str, Any]

# The network that grows in the benchmarks of scaling, and over which batch sizes beside 32.
_SCALED = "cifar10-bayes-cnn"
_BATCH_SIZES = (128, 512)


@dataclass(frozen=True)
class Contender:
    """A library, used in one way.

    Attributes:
        name: In tables.
        library: As `contender.py` knows it.
        variants: Ways that are equal in the library's documentation; tried once for each network, batch size and number
            of processors, and the fastest one is measured.
        variant_of: Another contender, whose chosen variant is taken, with `variants[0]` added to it.
        trial_share: Of an epoch's pictures, in trials: less where the variants' ratio does not depend on how many there
            are. bfloat16 without instructions for it takes minutes.
    """

    name: str
    library: str
    variants: tuple[dict[str, Any], ...] = ({},)
    variant_of: str | None = None
    trial_share: float = 1.0


@dataclass(frozen=True)
class Benchmark:
    """Cases that the same contenders are measured on.

    Attributes:
        name: Of the result file and on the command line.
        kind: The function of `libraries/` that is called: `train`, `infer` or `folder`.
        contenders: In the order of a turn.
        cases: `network`, `batch_size`, `pictures` and `processors` each.
    """

    name: str
    kind: str
    contenders: tuple[Contender, ...]
    cases: list[Case] = field(default_factory=list)


def _worker_counts(processors: int) -> list[int]:
    return sorted({max(1, processors // 2), processors})


def training_contenders(processors: int, *, cuda: bool) -> tuple[Contender, ...]:
    """Netloom and everything that trains, on a machine with so many processors."""
    workers = tuple({"loop": "tutorial", "workers": n} for n in _worker_counts(processors))
    tuned: tuple[dict[str, Any], ...] = (
        {"loop": "tuned", "precision": "float32"},
        {"loop": "tuned", "precision": "bfloat16"},
    )
    if cuda:  # on a CPU it needs a compiler, and made networks of this size slower
        tuned += tuple({**variant, "compile": True} for variant in tuned)
    arrays = {"inputs": "float32 arrays"}
    return (
        Contender("netloom", "netloom"),
        Contender("Keras TensorFlow", "keras-tensorflow", (arrays, {"inputs": "uint8 arrays"}, {"inputs": "tf.data"})),
        Contender(
            "Keras TensorFlow bfloat16",
            "keras-tensorflow",
            ({"precision": "bfloat16"},),
            variant_of="Keras TensorFlow",
        ),
        Contender("Keras torch", "keras-torch", (arrays, {**arrays, "data_format": "channels_first"})),
        Contender("PyTorch", "pytorch", ({"loop": "tutorial", "workers": 0},)),
        Contender("PyTorch workers", "pytorch", workers),
        Contender("PyTorch tuned", "pytorch", tuned, trial_share=0.25),
        Contender("Lightning", "lightning", tuple({"workers": n} for n in (0, max(1, processors // 2)))),
        Contender("fastai", "fastai", tuple({"workers": n} for n in (0, max(1, processors // 2)))),
    )


def training(processors: int, *, cuda: bool) -> Benchmark:
    """Every network at its own batch size, at 32 and at 128."""
    cases = [
        _case(network.recipe, batch_size, network.pictures, processors)
        for network in NETWORKS.values()
        for batch_size in sorted({network.batch_size, 32, 128})
    ]
    return Benchmark("training", "train", training_contenders(processors, cuda=cuda), cases)


def inference_contenders() -> tuple[Contender, ...]:
    """Netloom and everything that predicts."""
    arrays = {"inputs": "float32 arrays"}
    precisions = tuple({"precision": precision} for precision in ("float32", "bfloat16"))
    return (
        Contender("netloom", "netloom"),
        Contender(
            "Keras TensorFlow",
            "keras-tensorflow",
            (arrays, {"inputs": "uint8 arrays"}, {**arrays, "precision": "bfloat16"}),
        ),
        Contender("PyTorch", "pytorch", precisions),
        Contender("ONNX Runtime", "onnxruntime"),
    )


def inference(processors: int, *, cuda: bool) -> Benchmark:
    """Every network in evaluation mode, in small and in large batches."""
    cases = [
        _case(network.recipe, batch_size, 2 * max(512, network.pictures), processors)
        for network in NETWORKS.values()
        for batch_size in (32, 512)
    ]
    return Benchmark("inference", "infer", inference_contenders(), cases)


def folder_contenders(processors: int) -> tuple[Contender, ...]:
    """Netloom and everything that trains from a folder."""
    counts = _worker_counts(processors)
    return (
        Contender("netloom", "netloom", ({"cache": "cold"},)),
        Contender("netloom, second start", "netloom", ({"cache": "warm"},)),
        Contender("Keras TensorFlow", "keras-tensorflow", ({"cache": True},)),
        Contender("Keras TensorFlow uncached", "keras-tensorflow", ({"cache": False},)),
        Contender("PyTorch workers", "pytorch", tuple({"workers": n} for n in counts)),
        Contender("fastai", "fastai", tuple({"workers": n} for n in counts)),
    )


def data(processors: int, *, cuda: bool) -> Benchmark:
    """A folder of JPEG files, from the call to the end of the first epoch, and later epochs."""
    cases = [_case("photos", PHOTOS.batch_size, PHOTOS.pictures, processors)]
    return Benchmark("data", "folder", folder_contenders(processors), cases)


def scaling(processors: int, *, cuda: bool) -> Benchmark:
    """One training over processors, over batch sizes and over amounts of pictures, one of them at a time."""
    wanted = ("netloom", "Keras TensorFlow", "Keras TensorFlow bfloat16", "PyTorch", "PyTorch tuned")
    contenders = tuple(c for c in training_contenders(processors, cuda=cuda) if c.name in wanted)
    cases = _growing(_case(_SCALED, 32, 10_240, processors), _BATCH_SIZES, (1024, 51_200))
    return Benchmark("scaling", "train", contenders, cases)


def inference_scaling(processors: int, *, cuda: bool) -> Benchmark:
    """One network's prediction over the same."""
    cases = _growing(_case(_SCALED, 32, 20_480, processors), _BATCH_SIZES, (1024, 51_200))
    return Benchmark("inference-scaling", "infer", inference_contenders(), cases)


def data_scaling(processors: int, *, cuda: bool) -> Benchmark:
    """A folder of a quarter of the pictures over the same, as far as there are pictures."""
    wanted = ("netloom", "Keras TensorFlow", "PyTorch workers")
    contenders = tuple(c for c in folder_contenders(processors) if c.name in wanted)
    cases = _growing(_case("photos", 32, PHOTOS.pictures // 4, processors), _BATCH_SIZES, (PHOTOS.pictures,))
    return Benchmark("data-scaling", "folder", contenders, cases)


BENCHMARKS = {
    "training": training,
    "inference": inference,
    "data": data,
    "scaling": scaling,
    "inference-scaling": inference_scaling,
    "data-scaling": data_scaling,
}


def _case(network: str, batch_size: int, pictures: int, processors: int) -> Case:
    return {"network": network, "batch_size": batch_size, "pictures": pictures, "processors": processors}


def _growing(base: Case, batch_sizes: Sequence[int], counts: Sequence[int]) -> list[Case]:
    """The base with fewer processors, other batch sizes and other numbers of pictures, one of them at a time."""
    most = base["processors"]
    cases = [{**base, "processors": n} for n in sorted({1, 2, 4, most}) if n <= most]
    cases += [{**base, "batch_size": batch_size} for batch_size in batch_sizes]
    return cases + [{**base, "pictures": count} for count in counts]


def resized(cases: Sequence[Case], factor: float) -> list[Case]:
    """The same cases with so many times the pictures in an epoch, a multiple of 512 or as few as they were.

    Folders become no larger.
    """
    return [
        {**case, "pictures": round(case["pictures"] * min(1, factor))}
        if case["network"] == "photos"
        else {**case, "pictures": max(min(512, case["pictures"]), round(case["pictures"] * factor / 512) * 512)}
        for case in cases
    ]
