from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import hashlib
import http.server
import importlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from netloom.data.named import NAMED_SETS, NamedSet, RemoteFile
from netloom.data.sources import Source, open_source
from netloom.errors import DataError
from netloom.torchvision_shim import torchvision

random = np.random.default_rng(0)


class Server:
    """Serves a folder on the loopback interface and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                server.asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def take_downloads(self) -> set[str]:
        """What was asked for since the last time; torchvision asks twice, once for redirections."""
        names = {path.lstrip("/") for path in self.asked}
        self.asked.clear()
        return names


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "published"
    folder.mkdir()
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes]) -> None:
    """Put small files in the place of those that a named set is downloaded from."""
    dataset = NAMED_SETS[name]
    assert {file.name for file in dataset.files} == set(files)
    remote = []
    for file, content in files.items():
        (server.folder / file).write_bytes(content)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        remote.append(RemoteFile(file, (server.url + file,), digest))
    ours = dataclasses.replace(dataset, files=tuple(remote))
    monkeypatch.setitem(NAMED_SETS, name, ours)


def idx(array: np.ndarray) -> bytes:
    shape = np.array(array.shape, dtype=">u4").tobytes()
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes())


def mnist_files(images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, bytes]:
    files = {}
    for part in ("train", "t10k"):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(images[part])
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels[part])
    return files


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def labels_of(source: Source, part: str | None) -> list[int]:
    return [s.label for s in source.samples if s.split == part]


def test_the_table_is_complete() -> None:
    wanted = {"digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "svhn"}
    assert wanted <= set(NAMED_SETS)
    for name, dataset in NAMED_SETS.items():
        assert isinstance(dataset, NamedSet)
        assert dataset.name == name == name.casefold()
        assert dataset.n_classes >= 10
        assert all((dataset.description, dataset.licence, dataset.homepage))
        for file in dataset.files:
            assert len(bytes.fromhex(file.md5)) == 16
            assert all(url.endswith(file.name) for url in file.urls)


def test_sums_and_addresses_are_those_of_torchvision() -> None:
    """Reference: torchvision's own tables (it has CIFAR in another, pickled form)."""
    theirs = torchvision().datasets
    for name, reader in (
        ("mnist", theirs.MNIST),
        ("fashion-mnist", theirs.FashionMNIST),
        ("kmnist", theirs.KMNIST),
    ):
        files = NAMED_SETS[name].files
        assert [(file.name, file.md5) for file in files] == list(reader.resources)
        assert [list(file.urls) for file in files] == [
            [mirror + file.name for mirror in reader.mirrors] for file in files
        ]
    for name, reader in (("svhn", theirs.SVHN), ("usps", theirs.USPS)):
        files = [[file.urls[0], file.name, file.md5] for file in NAMED_SETS[name].files]
        assert files == [reader.split_list["train"], reader.split_list["test"]]


def test_the_embedded_digits() -> None:
    """Reference: scikit-learn's digits, values 0..16 as 0..255."""
    source = open_source("digits")
    expected = load_digits()
    assert (source.kind, source.name) == ("embedded", "digits")
    assert source.arrays is not None
    assert source.arrays.images.shape == (1797, 8, 8, 1)
    assert source.arrays.images.dtype == np.uint8
    assert np.abs(source.arrays.images[..., 0] * (16 / 255) - expected.images).max() < 16 / 255
    assert source.arrays.images.max() == 255
    assert [s.label for s in source.samples] == expected.target.tolist()
    assert len({s.id for s in source.samples}) == 1797


def test_mnist_is_downloaded_once_and_read_as_torchvision_reads_it(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reference: torchvision's IDX reader."""
    images = {p: random.integers(0, 256, (n, 28, 28), dtype=np.uint8) for p, n in (("train", 30), ("t10k", 20))}
    labels = {p: np.arange(len(i), dtype=np.uint8) % 10 for p, i in images.items()}
    publish(server, monkeypatch, "mnist", mnist_files(images, labels))
    source = open_source("MNIST")
    assert capsys.readouterr().out == ""
    assert server.take_downloads() == {file.name for file in NAMED_SETS["mnist"].files}
    raw = tmp_path / "raw"
    raw.write_bytes(gzip.decompress((server.folder / "train-images-idx3-ubyte.gz").read_bytes()))
    reader = importlib.import_module(f"{torchvision().__name__}.datasets.mnist")
    assert source.arrays is not None
    assert np.array_equal(source.arrays.images[:30, ..., 0], reader.read_image_file(str(raw)).numpy())
    assert np.array_equal(source.arrays.images[30:, ..., 0], images["t10k"])
    assert labels_of(source, "train") == labels["train"].tolist()
    assert labels_of(source, "test") == labels["t10k"].tolist()
    assert source.samples[31].id == "test/00001"
    assert source.kind == "named"
    assert open_source("mnist").fingerprint() == source.fingerprint()
    assert server.take_downloads() == set()


def test_fashion_and_kuzushiji_have_names(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: torchvision's `classes`."""
    images = {p: np.zeros((10, 28, 28), dtype=np.uint8) for p in ("train", "t10k")}
    labels = {p: np.arange(10, dtype=np.uint8) for p in images}
    for name, reader in (("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")):
        publish(server, monkeypatch, name, mnist_files(images, labels))
        classes = getattr(torchvision().datasets, reader).classes
        assert list(open_source(name).class_names) == classes


@pytest.mark.parametrize(("name", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_binaries(name: str, label_bytes: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the format as published: label bytes, then red, green and blue planes by rows."""
    pixels = random.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8)
    records = [bytes([7] * (label_bytes - 1) + [y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True)]
    names = [f"class{i}" for i in range(10)]
    if name == "cifar10":
        members = {f"cifar-10-batches-bin/data_batch_{i + 1}.bin": records[i] for i in range(5)}
        members["cifar-10-batches-bin/test_batch.bin"] = records[5]
        members["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(names) + "\n\n").encode()
        file = "cifar-10-binary.tar.gz"
    else:
        members = {"cifar-100-binary/train.bin": b"".join(records[:5])}
        members["cifar-100-binary/test.bin"] = records[5]
        members["cifar-100-binary/fine_label_names.txt"] = ("\n".join(names) + "\n").encode()
        file = "cifar-100-binary.tar.gz"
    publish(server, monkeypatch, name, {file: tar_gz(members)})
    source = open_source(name)
    assert source.arrays is not None
    for place in range(6):
        for channel in range(3):
            assert np.array_equal(source.arrays.images[place, :, :, channel], pixels[place, channel])
    assert labels_of(source, "train") == [3, 1, 4, 1, 5]
    assert labels_of(source, "test") == [9]
    assert list(source.class_names) == names


def test_svhn_matlab_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    images = random.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    savemat(buffer, {"X": images, "y": np.array([[1], [10], [9], [2]], dtype=np.uint8)})
    files = {"train_32x32.mat": buffer.getvalue(), "test_32x32.mat": buffer.getvalue()}
    publish(server, monkeypatch, "svhn", files)
    source = open_source("svhn")
    assert source.arrays is not None
    assert np.array_equal(source.arrays.images[5], images[..., 1])
    assert labels_of(source, "test") == [1, 0, 9, 2]


def test_usps_text_files(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reference: torchvision's reader on the same file."""
    values = random.uniform(-1, 1, (5, 256)).round(4)
    lines = [
        f"{place + 1} " + " ".join(f"{i + 1}:{v:g}" for i, v in enumerate(row)) + " "
        for place, row in enumerate(values)
    ]
    content = bz2.compress(("\n".join(lines) + "\n").encode())
    publish(server, monkeypatch, "usps", {"usps.bz2": content, "usps.t.bz2": content})
    source = open_source("usps")
    (tmp_path / "usps.bz2").write_bytes(content)
    theirs = torchvision().datasets.USPS(str(tmp_path), train=True)
    assert source.arrays is not None
    assert np.array_equal(source.arrays.images[:5, ..., 0], theirs.data)
    assert labels_of(source, "train") == theirs.targets


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def test_published_archives_of_folders(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {
        f"imagenette2-160/{part}/{code}/1.png": picture()
        for part in ("train", "val")
        for code in ("n03445777", "n01440764")
    }
    publish(server, monkeypatch, "imagenette", {"imagenette2-160.tgz": tar_gz(members)})
    source = open_source("imagenette")
    assert source.class_names == ("tench", "golf ball")
    assert [s.split for s in source.samples] == ["train", "train", "validation", "validation"]
    assert (source.kind, source.name, source.arrays) == ("named", "imagenette", None)


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_a_local_copy_comes_first(form: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ["train/0/1.png", "train/1/1.png", "test/0/1.png", "test/1/1.png"]
    data = tmp_path / "data"
    data.mkdir()
    if form == "folder":
        for name in names:
            (data / "mnist" / name).parent.mkdir(parents=True, exist_ok=True)
            (data / "mnist" / name).write_bytes(picture())
    elif form == "zip":
        with zipfile.ZipFile(data / "mnist.zip", "w") as archive:
            for name in names:
                archive.writestr(name, picture())
    else:
        (data / "mnist.tar.gz").write_bytes(tar_gz({name: picture() for name in names}))
    monkeypatch.setenv("NETLOOM_DATA", str(data))
    source = open_source("mnist")
    assert (source.name, source.kind) == ("mnist", "named")
    assert [s.id for s in source.samples] == sorted(names)
    assert server.take_downloads() == set()


def test_a_download_that_breaks_off_is_not_taken_for_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "cache"))
    whole = tar_gz({"a/1.png": picture(), "b/1.png": picture()})
    publish(server, monkeypatch, "imagenette", {"imagenette2-160.tgz": whole})
    (server.folder / "imagenette2-160.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="could not be downloaded") as error:
        open_source("imagenette")
    assert "NETLOOM_DATA" in str(error.value)
    assert "imagenette/train/CLASS" in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    (server.folder / "imagenette2-160.tgz").write_bytes(whole)
    assert open_source("imagenette").class_names == ("a", "b")


def test_a_damaged_file_in_the_cache_is_fetched_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "cache"))
    whole = tar_gz({"a/1.png": picture(), "b/1.png": picture()})
    publish(server, monkeypatch, "imagenette", {"imagenette2-160.tgz": whole})
    open_source("imagenette")
    server.take_downloads()
    (cached,) = (tmp_path / "cache").rglob("imagenette2-160.tgz")
    cached.write_bytes(whole[:-5])
    assert len(open_source("imagenette").samples) == 2
    assert cached.read_bytes() == whole
    assert server.take_downloads() == {"imagenette2-160.tgz"}


def test_the_next_mirror_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_gz({"a/1.png": picture(), "b/1.png": picture()})
    publish(server, monkeypatch, "imagenette", {"imagenette2-160.tgz": content})
    dataset = NAMED_SETS["imagenette"]
    (file,) = dataset.files
    mirrors = (server.url + "gone/imagenette2-160.tgz", *file.urls)
    two = dataclasses.replace(dataset, files=(dataclasses.replace(file, urls=mirrors),))
    monkeypatch.setitem(NAMED_SETS, "imagenette", two)
    assert open_source("imagenette").class_names == ("a", "b")


def test_a_folder_of_the_same_name_needs_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        (tmp_path / "digits" / name / "1.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path)
    assert open_source("digits").kind == "embedded"
    assert open_source("./digits").kind == open_source("digits/").kind == "folder"
    assert open_source(Path("digits")).kind == "folder"
