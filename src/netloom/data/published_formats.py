"""Readers for the formats that named data sets are published in; none unpickles anything."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_DIGITS = tuple("0123456789")


@dataclass(frozen=True, eq=False)
class PublishedPictures:
    """Pictures uint8 `[N, H, W, C]` and class indices int64 `[N]` by part (None: not split)."""

    class_names: tuple[str, ...]
    parts: dict[str | None, tuple[Pixels, Labels]]


def read_digits(_: Mapping[str, Path]) -> PublishedPictures:
    """The 1,797 digits that scikit-learn brings, their values 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return PublishedPictures(_DIGITS, {None: (images, digits.target.astype(np.int64))})


def read_idx_pair(files: Mapping[str, Path]) -> PublishedPictures:
    """The four gzipped files of MNIST and its likes, with the digits as class names."""
    parts: dict[str | None, tuple[Pixels, Labels]] = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(files[f"{prefix}-images-idx3-ubyte.gz"])
        labels = _read_idx(files[f"{prefix}-labels-idx1-ubyte.gz"])
        parts[part] = images[..., None], labels.astype(np.int64)
    return PublishedPictures(_DIGITS, parts)


def _read_idx(path: Path) -> Pixels:
    """An IDX file of bytes: two zeros, type 8, the number of dimensions, big-endian sizes, data."""
    with gzip.open(path) as file:
        content = file.read()
    n_dimensions = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=n_dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)


def read_cifar10(files: Mapping[str, Path]) -> PublishedPictures:
    """The binary version of CIFAR-10: records of a label and 3 x 32 x 32 pixels, channel first."""
    members = _read_tar(files["cifar-10-binary.tar.gz"])
    train = b"".join(members[f"data_batch_{number}.bin"] for number in range(1, 6))
    return PublishedPictures(
        tuple(members["batches.meta.txt"].decode().split()),
        {
            "train": _cifar_records(train, label_bytes=1),
            "test": _cifar_records(members["test_batch.bin"], label_bytes=1),
        },
    )


def read_cifar100(files: Mapping[str, Path]) -> PublishedPictures:
    """The binary version of CIFAR-100, with its fine labels; records begin with the coarse one."""
    members = _read_tar(files["cifar-100-binary.tar.gz"])
    return PublishedPictures(
        tuple(members["fine_label_names.txt"].decode().split()),
        {
            "train": _cifar_records(members["train.bin"], label_bytes=2),
            "test": _cifar_records(members["test.bin"], label_bytes=2),
        },
    )


def _read_tar(path: Path) -> dict[str, bytes]:
    """The content of each file by its last name."""
    with tarfile.open(path, "r:gz") as archive:
        return {
            Path(member.name).name: file.read()
            for member in archive
            if (file := archive.extractfile(member)) is not None
        }


def _cifar_records(content: bytes, *, label_bytes: int) -> tuple[Pixels, Labels]:
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, label_bytes + 3 * 32 * 32)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int64)


def read_svhn(files: Mapping[str, Path]) -> PublishedPictures:
    """The cropped digits of SVHN from MATLAB files: `X` `[32, 32, 3, N]`, `y` with 10 for zero."""
    from scipy.io import loadmat

    parts: dict[str | None, tuple[Pixels, Labels]] = {}
    for part in ("train", "test"):
        content = loadmat(str(files[f"{part}_32x32.mat"]), variable_names=("X", "y"))
        images = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2), dtype=np.uint8)
        parts[part] = images, content["y"].reshape(-1).astype(np.int64) % 10
    return PublishedPictures(_DIGITS, parts)


def read_usps(files: Mapping[str, Path]) -> PublishedPictures:
    """USPS in LIBSVM text: labels 1..10 for 0..9, 256 values in -1..1, scaled to 0..255."""
    from sklearn.datasets import load_svmlight_file

    parts: dict[str | None, tuple[Pixels, Labels]] = {}
    for part, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        values, labels = load_svmlight_file(str(files[name]), n_features=256)
        images = ((values.toarray() + 1) / 2 * 255).astype(np.uint8).reshape(-1, 16, 16, 1)
        parts[part] = images, labels.astype(np.int64) - 1
    return PublishedPictures(_DIGITS, parts)
