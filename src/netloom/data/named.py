"""Data sets by name: from a local copy, or downloaded once into the cache and verified.

Readers take the published files as they are, without unpickling anything: torchvision's own reader
of CIFAR unpickles, and the one of MNIST loads tensors with pickles where it finds some.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netloom.data.cache import cache_directory
from netloom.data.published_formats import (
    PublishedPictures,
    read_cifar10,
    read_cifar100,
    read_digits,
    read_idx_pair,
    read_svhn,
    read_usps,
)
from netloom.data.samples import ArrayPictures, Sample, Source
from netloom.data.source_files import open_path
from netloom.errors import DataError
from netloom.files import with_home, writing

_LOCAL_FORMS = ("", ".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, where it can be had (tried in order), and its MD5 sum."""

    name: str
    urls: tuple[str, ...]
    md5: str


@dataclass(frozen=True)
class NamedSet:
    """A data set that can be trained on by name.

    Attributes:
        name: As the user writes it.
        description: One line: how many pictures of what, at which size.
        n_classes: How many classes there are.
        licence: Terms of use, as published.
        homepage: The page of its authors.
        files: What is downloaded; none for a set that comes with a library.
        read: Makes arrays of the files, given their paths by name; None where the only file is an
            archive of class folders.
        display_names: Names to show for class folders that have technical ones.
        default_recipe: The shipped recipe that is a good start on it.
    """

    name: str
    description: str
    n_classes: int
    licence: str
    homepage: str
    files: tuple[RemoteFile, ...] = ()
    read: Callable[[Mapping[str, Path]], PublishedPictures] | None = None
    display_names: Mapping[str, str] = field(default_factory=dict)
    default_recipe: str = "photos"


def _idx_files(urls: tuple[str, ...], *md5: str) -> tuple[RemoteFile, ...]:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(
        RemoteFile(name, tuple(url + name for url in urls), digest) for name, digest in zip(names, md5, strict=True)
    )


_SETS = (
    NamedSet(
        name="digits",
        description="1,797 handwritten digits, 8x8 grey; embedded, needs no download",
        n_classes=10,
        licence="CC BY 4.0",
        homepage="https://archive.ics.uci.edu/dataset/80",
        default_recipe="digits",
        read=read_digits,
    ),
    NamedSet(
        name="mnist",
        description="70,000 handwritten digits, 28x28 grey",
        n_classes=10,
        licence="CC BY-SA 3.0",
        homepage="http://yann.lecun.com/exdb/mnist/",
        default_recipe="mnist-convnet",
        files=_idx_files(
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "http://yann.lecun.com/exdb/mnist/",
            ),
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        read=read_idx_pair,
    ),
    NamedSet(
        name="fashion-mnist",
        description="70,000 articles of clothing, 28x28 grey",
        n_classes=10,
        licence="MIT",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        default_recipe="mnist-convnet",
        files=_idx_files(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        read=lambda files: replace(
            read_idx_pair(files),
            class_names=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
        ),
    ),
    NamedSet(
        name="kmnist",
        description="70,000 handwritten Hiragana of ten kinds, 28x28 grey",
        n_classes=10,
        licence="CC BY-SA 4.0",
        homepage="http://codh.rois.ac.jp/kmnist/",
        default_recipe="mnist-convnet",
        files=_idx_files(
            ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        read=lambda files: replace(
            read_idx_pair(files),
            class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        ),
    ),
    NamedSet(
        name="cifar10",
        description="60,000 objects and animals, 32x32 colour",
        n_classes=10,
        licence="no licence stated; cite Krizhevsky 2009",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        default_recipe="cifar10-conv2-improved",
        files=(
            RemoteFile(
                "cifar-10-binary.tar.gz",
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                "c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
        read=read_cifar10,
    ),
    NamedSet(
        name="cifar100",
        description="60,000 objects and animals, 32x32 colour",
        n_classes=100,
        licence="no licence stated; cite Krizhevsky 2009",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        default_recipe="cifar10-conv2-improved",
        files=(
            RemoteFile(
                "cifar-100-binary.tar.gz",
                ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
                "03b5dce01913d631647c71ecec9e9cb8",
            ),
        ),
        read=read_cifar100,
    ),
    NamedSet(
        name="svhn",
        description="99,289 house numbers cut into digits, 32x32 colour",
        n_classes=10,
        licence="non-commercial use only",
        homepage="http://ufldl.stanford.edu/housenumbers/",
        default_recipe="cifar10-conv2-improved",
        files=(
            RemoteFile(
                "train_32x32.mat",
                ("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",),
                "e26dedcc434d2e4c54c9b2d4a06d8373",
            ),
            RemoteFile(
                "test_32x32.mat",
                ("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",),
                "eb5a983be6a315427106f1b164d9cef3",
            ),
        ),
        read=read_svhn,
    ),
    NamedSet(
        name="usps",
        description="9,298 handwritten digits of postal codes, 16x16 grey",
        n_classes=10,
        licence="no licence stated; cite Hull 1994",
        homepage="https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps",
        default_recipe="mnist-convnet",
        files=(
            RemoteFile(
                "usps.bz2",
                ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.bz2",),
                "ec16c51db3855ca6c91edd34d0e9b197",
            ),
            RemoteFile(
                "usps.t.bz2",
                ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.t.bz2",),
                "8ea070ee2aca1ac39742fdd1ef5ed118",
            ),
        ),
        read=read_usps,
    ),
    NamedSet(
        name="imagenette",
        description="13,394 photographs of ten easily told things, shorter side 160 pixels",
        n_classes=10,
        licence="Apache-2.0",
        homepage="https://github.com/fastai/imagenette",
        files=(
            RemoteFile(
                "imagenette2-160.tgz",
                ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",),
                "e793b78cc4c9e9a4ccc0c1155377a412",
            ),
        ),
        display_names={
            "n01440764": "tench",
            "n02102040": "English springer",
            "n02979186": "cassette player",
            "n03000684": "chain saw",
            "n03028079": "church",
            "n03394916": "French horn",
            "n03417042": "garbage truck",
            "n03425413": "gas pump",
            "n03445777": "golf ball",
            "n03888257": "parachute",
        },
    ),
    NamedSet(
        name="eurosat",
        description="27,000 satellite views of land in ten uses, 64x64 colour",
        n_classes=10,
        licence="MIT",
        homepage="https://github.com/phelber/EuroSAT",
        files=(
            RemoteFile(
                "EuroSAT.zip",
                (
                    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                ),
                "c8fa014336c82ac7804f0398fcb19387",
            ),
        ),
    ),
)

NAMED_SETS: dict[str, NamedSet] = {dataset.name: dataset for dataset in _SETS}
"""What `open_source` knows by name. The sums of CIFAR are those of its authors' page (homepage
above), the others those of torchvision 0.28 (`torchvision/datasets/`)."""


def open_named(name: str) -> Source:
    """Open the named set `name`, a key of `NAMED_SETS`.

    A copy in the folder that the environment variable `NETLOOM_DATA` names comes first
    (`<name>/`, `<name>.zip`, `<name>.tar.gz`, …), then files downloaded before, then a download.

    Raises:
        DataError: There is no local copy, and the download failed or did not arrive whole.
        RunError: The cache folder cannot be written.
    """
    dataset = NAMED_SETS[name]
    local = _local_copy(name) if dataset.files else None
    if local is not None:
        return _with_display_names(open_path(local, name=name, kind="named"), dataset)
    files = {file.name: _obtain(file, dataset) for file in dataset.files}
    if dataset.read is None:
        archive = files[dataset.files[0].name]
        return _with_display_names(open_path(archive, name=name, kind="named"), dataset)
    return _source_of_arrays(dataset, dataset.read(files))


def _local_copy(name: str) -> Path | None:
    folder = os.environ.get("NETLOOM_DATA")
    if not folder:
        return None
    candidates = (with_home(folder) / f"{name}{form}" for form in _LOCAL_FORMS)
    return next((path for path in candidates if path.exists()), None)


def _with_display_names(source: Source, dataset: NamedSet) -> Source:
    names = tuple(dataset.display_names.get(name, name) for name in source.class_names)
    return replace(source, class_names=names)


def _source_of_arrays(dataset: NamedSet, pictures: PublishedPictures) -> Source:
    samples = []
    for part, (_, labels) in pictures.parts.items():
        prefix = f"{part}/" if part else ""
        samples += [
            Sample(id=f"{prefix}{number:05}", label=label, split=part) for number, label in enumerate(labels.tolist())
        ]
    images: npt.NDArray[np.uint8] = np.concatenate([i for i, _ in pictures.parts.values()])
    return Source(
        name=dataset.name,
        kind="named" if dataset.files else "embedded",
        location=dataset.name,
        class_names=pictures.class_names,
        samples=samples,
        arrays=ArrayPictures(images),
    )


def _obtain(file: RemoteFile, dataset: NamedSet) -> Path:
    """The file in the cache, whole: from an earlier download, or downloaded now."""
    folder = cache_directory() / "datasets" / dataset.name
    path = folder / file.name
    if path.is_file() and _md5(path) == file.md5:
        return path
    with writing(folder, "Set NETLOOM_CACHE to a folder that can be written."):
        folder.mkdir(parents=True, exist_ok=True)
        # What arrives takes its place only when it is whole; another process may do the same.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            _download(file, dataset, Path(partial))
            (Path(partial) / file.name).replace(path)
    return path


def _download(file: RemoteFile, dataset: NamedSet, folder: Path) -> None:
    failures = []
    for url in file.urls:
        failure = _failure_of_download(url, file, folder)
        if failure is None:
            return
        failures.append(f"{url}: {failure}")
    raise DataError(
        f"{dataset.name} is not on this machine, and {file.name} could not be downloaded "
        f"({'; '.join(failures)}). Without a network, get the set elsewhere, set NETLOOM_DATA to a "
        f"folder and put the pictures there as {dataset.name}/train/CLASS/… and "
        f"{dataset.name}/test/CLASS/…, or the same in {dataset.name}.zip."
    )


def _failure_of_download(url: str, file: RemoteFile, folder: Path) -> Exception | None:
    """Put the file into `folder`, its MD5 sum checked; what went wrong, or None."""
    from netloom.torchvision_shim import torchvision

    try:
        # stdout is kept for results: some releases of torchvision print there.
        with contextlib.redirect_stdout(sys.stderr):
            torchvision().datasets.utils.download_url(url, folder, filename=file.name, md5=file.md5)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        return error
    return None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
