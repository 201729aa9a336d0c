"""The measured networks as plain lists of layers, from which every peer builds its own.

A peer's network must be the one that netloom's recipe of the same name trains: the suite compares the numbers of
trainable parameters that each process reports, and a test compares the shapes of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Layer = tuple[Any, ...]


@dataclass(frozen=True)
class Network:
    """A network with its training.

    Attributes:
        recipe: netloom's shipped recipe; also the name in tables.
        shape: Height, width and channels of the pictures.
        classes: Classes of the pictures; two make one sigmoid output.
        layers: `("conv", filters, kernel, padding)`, `("relu",)`, `("norm",)`, `("pool",)` (2x2, maximum),
            `("dropout", rate)`, `("flatten",)`, `("dense", units)`, in the order in which they are applied.
        optimizer: `adam`, `nadam`, `rmsprop` or `sgd`, with the constants of the recipe.
        learning_rate: Of the optimizer.
        batch_size: The recipe's.
        pictures: In an epoch; a multiple of the batches of 32 and 128, so that every library takes the same steps.
        trained_on: Pictures of the training part of the notebook that the recipe repeats.
        settings: Recipe keys that differ from the shipped recipe.
    """

    recipe: str
    shape: tuple[int, int, int]
    classes: int
    layers: tuple[Layer, ...]
    optimizer: str
    learning_rate: float
    batch_size: int
    pictures: int
    trained_on: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for a picture."""
        return 1 if self.classes == 2 else self.classes


def _conv(filters: int, *, padding: str, kernel: int = 3, pool: bool = True) -> tuple[Layer, ...]:
    layers: tuple[Layer, ...] = (("conv", filters, kernel, padding), ("relu",))
    return (*layers, ("pool",)) if pool else layers


def _normalized_conv(filters: int) -> tuple[Layer, ...]:
    return ("conv", filters, 3, "same"), ("relu",), ("norm",), ("pool",), ("dropout", 0.25)


def _dense(*units: int) -> tuple[Layer, ...]:
    return tuple(layer for n in units for layer in (("dense", n), ("relu",)))


def _vgg_trunk() -> tuple[Layer, ...]:
    blocks = [
        (*_conv(filters, padding="same", pool=False), *_conv(filters, padding="same"))
        for filters in (64, 128, 256, 512, 512)
    ]
    return tuple(layer for block in blocks for layer in block)


_FLATTEN: tuple[Layer, ...] = (("flatten",),)
_CIFAR10: dict[str, Any] = {"shape": (32, 32, 3), "classes": 10, "trained_on": 40_000}

# Pictures of an epoch: one to two seconds of training on four cores.
NETWORKS: dict[str, Network] = {
    network.recipe: network
    for network in (
        Network(
            "cifar10-bayes-cnn",
            **_CIFAR10,
            layers=(
                *_conv(32, padding="valid"),
                *_conv(64, padding="valid"),
                *_FLATTEN,
                ("dropout", 0.3),
            ),
            optimizer="adam",
            learning_rate=1e-3,
            batch_size=32,
            pictures=5632,
        ),
        Network(
            "cifar10-lenet5",
            **_CIFAR10,
            layers=(
                *_conv(6, padding="valid", kernel=5),
                *_conv(16, padding="valid", kernel=5),
                *_FLATTEN,
                *_dense(120, 84),
            ),
            optimizer="adam",
            learning_rate=1e-3,
            batch_size=32,
            pictures=10752,
        ),
        Network(
            "cifar10-conv2-improved",
            **_CIFAR10,
            layers=(
                *_normalized_conv(32),
                *_normalized_conv(64),
                *_normalized_conv(128),
                *_FLATTEN,
                ("dense", 256),
                ("relu",),
                ("norm",),
                ("dropout", 0.5),
            ),
            optimizer="adam",
            learning_rate=1e-3,
            batch_size=32,
            pictures=1536,
            settings={"input_scaling": "unit", "ema": None},  # which the peers have no one-line way to do
        ),
        Network(
            "cifar10-conv2",
            **_CIFAR10,
            layers=(*_conv(10, padding="same"), *_FLATTEN, ("dropout", 0.5), *_dense(100)),
            optimizer="nadam",
            learning_rate=1e-3,
            batch_size=32,
            pictures=5632,
        ),
        Network(
            "mnist-convnet",
            shape=(28, 28, 1),
            classes=10,
            trained_on=60_000,
            layers=(
                *_conv(32, padding="valid"),
                *_conv(64, padding="valid"),
                *_conv(64, padding="valid", pool=False),
                *_FLATTEN,
                *_dense(64),
            ),
            optimizer="rmsprop",
            learning_rate=1e-3,
            batch_size=64,
            pictures=5632,
        ),
        Network(
            "cats-dogs-scratch",
            shape=(150, 150, 3),
            classes=2,
            trained_on=2000,
            layers=(
                *_conv(32, padding="valid"),
                *_conv(64, padding="valid"),
                *_conv(128, padding="valid"),
                *_conv(128, padding="valid"),
                *_FLATTEN,
                *_dense(512),
            ),
            optimizer="rmsprop",
            learning_rate=1e-4,
            batch_size=20,
            pictures=512,
        ),
        Network(
            "fashion-mlp",
            shape=(28, 28, 1),
            classes=10,
            trained_on=55_000,
            layers=(*_FLATTEN, *_dense(300, 100)),
            optimizer="sgd",
            learning_rate=1e-2,
            batch_size=32,
            pictures=10752,
        ),
        Network(
            "cifar10-vgg",
            **_CIFAR10,
            layers=(*_vgg_trunk(), *_FLATTEN, *_dense(4096, 4096, 1000)),
            optimizer="adam",
            learning_rate=1e-4,
            batch_size=32,
            pictures=256,
        ),
    )
}

# Two small convolutions at the size of photographs: reading the files is most of the work. 3,960 pictures, and 40 that
# netloom and fastai validate and test on, are what cats_and_dogs_small.zip holds.
PHOTOS = Network(
    "cats-dogs-scratch",
    shape=(150, 150, 3),
    classes=2,
    layers=(*_conv(16, padding="valid"), *_conv(32, padding="valid"), *_FLATTEN),
    optimizer="rmsprop",
    learning_rate=1e-4,
    batch_size=32,
    pictures=3960,
    trained_on=3960,
    settings={"filters": [16, 32], "dense_units": []},
)


def network(name: str) -> Network:
    """The network of that name; `photos` is the small one of the data benchmark."""
    return PHOTOS if name == "photos" else NETWORKS[name]
