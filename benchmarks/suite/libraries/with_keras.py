"""Keras on TensorFlow or PyTorch.

`compile` and `fit` have everything at its default, `jit_compile="auto"` and `steps_per_execution=1` among it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.suite.clock import EpochClock
from benchmarks.suite.errors import NotAvailableError
from benchmarks.suite.networks import Network, network
from benchmarks.suite.pictures import noise


class _EpochTimer(keras.callbacks.Callback):
    def __init__(self, clock: EpochClock) -> None:
        super().__init__()
        self.clock = clock

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.clock.epoch_ended()


def build(net: Network, *, rescale: bool) -> keras.Model:
    """The compiled network; `rescale` takes uint8 pictures, without it they are 0..1 already."""
    height, width, channels = net.shape
    channels_first = keras.config.image_data_format() == "channels_first"
    inputs = keras.Input((channels, height, width) if channels_first else net.shape)
    x = layers.Rescaling(1 / 255)(inputs) if rescale else inputs
    for kind, *options in net.layers:
        if kind == "conv":
            x = layers.Conv2D(options[0], options[1], padding=options[2])(x)
        elif kind == "dense":
            x = layers.Dense(options[0])(x)
        elif kind == "dropout":
            x = layers.Dropout(options[0])(x)
        elif kind == "norm":
            x = layers.BatchNormalization(axis=1 if channels_first and len(x.shape) == 4 else -1)(x)
        else:
            x = {"relu": layers.ReLU, "pool": layers.MaxPooling2D, "flatten": layers.Flatten}[kind]()(x)
    # Under mixed precision the documentation asks for outputs in float32.
    model = keras.Model(inputs, layers.Dense(net.outputs, dtype="float32")(x))
    kinds = {"adam": "Adam", "nadam": "Nadam", "rmsprop": "RMSprop", "sgd": "SGD"}
    optimizer = getattr(keras.optimizers, kinds[net.optimizer])(net.learning_rate)
    losses = keras.losses
    if net.outputs == 1:
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)
        model.compile(optimizer, losses.BinaryCrossentropy(from_logits=True), metrics=[accuracy])
    else:
        model.compile(optimizer, losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def train(job: dict[str, Any]) -> dict[str, Any]:
    """`fit` on pictures in memory; the variant's `inputs` say in which form it is given them."""
    net, variant, device = network(job["network"]), job["variant"], _configure(job)
    form = variant.get("inputs", "float32 arrays")
    pixels, labels = noise(net.shape, net.classes, job["pictures"])
    if variant.get("data_format") == "channels_first":
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    floats = pixels.astype(np.float32) / 255 if form == "float32 arrays" else None
    clock = EpochClock()
    model = build(net, rescale=floats is None)
    options: dict[str, Any] = {"epochs": job["epochs"], "verbose": 0, "callbacks": [_EpochTimer(clock)]}
    if form == "tf.data":
        model.fit(_pipeline(pixels, labels, job["batch_size"]), **options)
    else:
        model.fit(pixels if floats is None else floats, labels, batch_size=job["batch_size"], **options)
    return {**clock.figures(job["pictures"]), **_facts(model, device, job)}


def infer(job: dict[str, Any]) -> dict[str, Any]:
    """`predict` on pictures in memory."""
    net, device = network(job["network"]), _configure(job)
    pixels, _ = noise(net.shape, net.classes, job["pictures"])
    given = pixels.astype(np.float32) / 255 if job["variant"]["inputs"] == "float32 arrays" else pixels
    clock = EpochClock()
    model = build(net, rescale=given is pixels)
    for _ in range(job["epochs"]):
        model.predict(given, batch_size=job["batch_size"], verbose=0)
        clock.epoch_ended()
    return {**clock.figures(job["pictures"]), **_facts(model, device, job)}


def folder(job: dict[str, Any]) -> dict[str, Any]:
    """`image_dataset_from_directory`, read anew in each epoch or kept by `cache()`, and prefetched."""
    import tensorflow as tf

    net, device = network("photos"), _configure(job)
    clock = EpochClock()
    pictures = keras.utils.image_dataset_from_directory(
        str(Path(job["folder"]) / "train"),
        label_mode="int",
        image_size=net.shape[:2],
        batch_size=job["batch_size"],
        seed=0,
        verbose=False,
    )
    if job["variant"]["cache"]:
        pictures = pictures.cache()
    model = build(net, rescale=True)
    model.fit(pictures.prefetch(tf.data.AUTOTUNE), epochs=job["epochs"], verbose=0, callbacks=[_EpochTimer(clock)])
    return {**clock.figures(job["pictures"]), **_facts(model, device, job)}


def _configure(job: dict[str, Any]) -> str:
    """Threads, precision and layout; the device that Keras will use.

    Raises:
        NotAvailableError: A GPU is asked for and there is none.
    """
    variant = job["variant"]
    if variant.get("precision") == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    if "data_format" in variant:
        keras.config.set_image_data_format(variant["data_format"])
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        found = torch.cuda.is_available()
    else:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
        found = bool(tf.config.list_physical_devices("GPU"))
    if job["device"] == "cuda" and not found:
        raise NotAvailableError(f"Keras on {os.environ['KERAS_BACKEND']} sees no GPU")
    return str(job["device"])


def _pipeline(pixels: Any, labels: Any, batch_size: int) -> Any:
    """The pipeline of tf.data's guide; the pictures are in memory already, so that `cache()` would copy them only."""
    import tensorflow as tf

    slices = tf.data.Dataset.from_tensor_slices((pixels, labels))
    return slices.shuffle(len(pixels)).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def _facts(model: keras.Model, device: str, job: dict[str, Any]) -> dict[str, Any]:
    count = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    return {"parameters": count, "device": device, "note": ", ".join(_told(job["variant"]))}


def _told(variant: dict[str, Any]) -> list[str]:
    if "cache" in variant:
        return ["cache()" if variant["cache"] else "read in each epoch"]
    return [str(value) for value in variant.values()]
