"""What is measured: benchmarks, their cases, and who takes part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.suite.networks import NETWORKS, PHOTOS

Case = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A library, used in one way.

    Attributes:
        name: In tables.
        library: As `contender.py` knows it.
        variants: Ways that are equal in the library's documentation; tried once for each network, and the fastest one
            is measured.
        variant_of: Another contender, whose chosen variant is taken, with `variants[0]` added to it.
    """

    name: str
    library: str
    variants: tuple[dict[str, Any], ...] = ({},)
    variant_of: str | None = None


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
    return sorted({1, max(1, processors // 2), processors})


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
        Contender("PyTorch tuned", "pytorch", tuned),
        Contender("Lightning", "lightning", tuple({"workers": n} for n in (0, max(1, processors // 2)))),
        Contender("fastai", "fastai", tuple({"workers": n} for n in (0, max(1, processors // 2)))),
    )


def training(processors: int, *, cuda: bool, large: bool) -> Benchmark:
    """Every network at its own batch size, at 32 and at 128."""
    chosen = [network for network in NETWORKS.values() if large or not network.large]
    cases = [
        _case(network.recipe, batch_size, network.pictures, processors)
        for network in chosen
        for batch_size in sorted({network.batch_size, 32, 128})
    ]
    return Benchmark("training", "train", training_contenders(processors, cuda=cuda), cases)


def inference(processors: int, *, cuda: bool, large: bool) -> Benchmark:
    """Every network in evaluation mode."""
    contenders = (
        Contender("netloom", "netloom"),
        Contender("Keras TensorFlow", "keras-tensorflow", ({"inputs": "float32 arrays"}, {"inputs": "uint8 arrays"})),
        Contender("PyTorch", "pytorch"),
        Contender("ONNX Runtime", "onnxruntime"),
    )
    cases = [
        _case(network.recipe, batch_size, 2 * network.pictures, processors)
        for network in NETWORKS.values()
        for batch_size in (32, 128, 512)
        if large or not network.large
    ]
    return Benchmark("inference", "infer", contenders, cases)


def data(processors: int, *, cuda: bool, large: bool) -> Benchmark:
    """A folder of JPEG files, from the call to the end of the first epoch, and later epochs."""
    counts = _worker_counts(processors)
    contenders = (
        Contender("netloom", "netloom", ({"cache": "cold"},)),
        Contender("netloom, second start", "netloom", ({"cache": "warm"},)),
        Contender("Keras TensorFlow", "keras-tensorflow", ({"cache": True},)),
        Contender("Keras TensorFlow uncached", "keras-tensorflow", ({"cache": False},)),
        Contender("PyTorch workers", "pytorch", tuple({"workers": n} for n in counts)),
        Contender("fastai", "fastai", tuple({"workers": n} for n in counts)),
    )
    return Benchmark("data", "folder", contenders, [_case("photos", PHOTOS.batch_size, PHOTOS.pictures, processors)])


def scaling(processors: int, *, cuda: bool, large: bool) -> Benchmark:
    """One network over processors, over batch sizes and over amounts of pictures, one of them at a time."""
    wanted = ("netloom", "Keras TensorFlow", "PyTorch", "PyTorch tuned")
    contenders = tuple(c for c in training_contenders(processors, cuda=cuda) if c.name in wanted)
    name, pictures = "cifar10-bayes-cnn", 10_240
    cases = [_case(name, 32, pictures, n) for n in sorted({1, 2, 4, processors}) if n <= processors]
    cases += [_case(name, batch_size, pictures, processors) for batch_size in (64, 128, 256, 512)]
    cases += [_case(name, 32, count, processors) for count in (1024, 51_200)]
    return Benchmark("scaling", "train", contenders, cases)


BENCHMARKS = {"training": training, "inference": inference, "data": data, "scaling": scaling}


def _case(network: str, batch_size: int, pictures: int, processors: int) -> Case:
    return {"network": network, "batch_size": batch_size, "pictures": pictures, "processors": processors}


def resized(cases: Sequence[Case], factor: float) -> list[Case]:
    """The same cases with so many times the pictures in an epoch, a multiple of 512; folders become no larger."""
    return [
        {**case, "pictures": round(case["pictures"] * min(1, factor))}
        if case["network"] == "photos"
        else {**case, "pictures": max(512, round(case["pictures"] * factor / 512) * 512)}
        for case in cases
    ]
