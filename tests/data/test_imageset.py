from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from netloom.data.imageset import ImageSet, load_image_set
from netloom.data.sources import open_source
from netloom.errors import DataError

random = np.random.default_rng(0)


def small_set(n: int = 6, channels: int = 3) -> ImageSet:
    images = random.integers(0, 256, (n, 5, 4, channels), dtype=np.uint8)
    return ImageSet.from_arrays(images, np.arange(n) % 2, class_names=["cat", "dog"])


def test_layouts_and_libraries_give_the_same_images() -> None:
    nhwc = random.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    nchw = np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))
    made = [
        ImageSet.from_arrays(nhwc, [0, 1, 2, 1]),
        ImageSet.from_arrays(nchw, np.array([0, 1, 2, 1], dtype=np.uint8), layout="NCHW"),
        ImageSet.from_arrays(torch.from_numpy(nhwc), torch.tensor([0, 1, 2, 1])),
        ImageSet.from_arrays(torch.from_numpy(nchw), [0, 1, 2, 1], layout="NCHW"),
    ]
    for image_set in made:
        assert np.array_equal(image_set.images.numpy(), nchw)
        assert image_set.images.is_contiguous(memory_format=torch.channels_last)
        assert image_set.targets.dtype == torch.int64
        assert image_set.class_names == ("0", "1", "2")
        assert image_set.content_hashes == made[0].content_hashes
        assert image_set.class_counts().tolist() == [1, 2, 1]


def test_grey_pictures_need_no_channel_axis() -> None:
    grey = random.integers(0, 256, (3, 5, 6), dtype=np.uint8)
    grey.flags.writeable = False
    image_set = ImageSet.from_arrays(grey, [0, 1, 0])
    assert np.array_equal(image_set.images[:, 0].numpy(), grey)
    assert image_set.images.is_contiguous(memory_format=torch.channels_last)


def test_a_subset_keeps_everything_in_the_order_asked_for() -> None:
    images = random.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    image_set = ImageSet.from_arrays(
        images,
        [0, 1, 0, 1, 0, 1],
        class_names=["a", "b"],
        ids=list("uvwxyz"),
        groups=["g", None, "g", None, "h", "h"],
        weights=[1, 2, 3, 4, 5, 6],
        splits=["train", "test", "train", "validation", None, "train"],
    )
    chosen = image_set.subset(np.array([4, 1, 2]))
    assert len(chosen) == 3
    assert np.array_equal(chosen.images.numpy(), images[[4, 1, 2]].transpose(0, 3, 1, 2))
    assert chosen.images.is_contiguous(memory_format=torch.channels_last)
    assert chosen.targets.tolist() == [0, 1, 0]
    assert chosen.ids == ("y", "v", "w")
    assert chosen.groups == ("h", None, "g")
    assert chosen.splits == (None, "test", "train")
    assert chosen.weights is not None
    assert chosen.weights.tolist() == [5, 2, 3]
    assert chosen.content_hashes is not None
    assert image_set.content_hashes is not None
    assert chosen.content_hashes[0] == image_set.content_hashes[4]
    assert chosen.class_names == ("a", "b")
    assert len(image_set.subset([])) == 0


def test_names_may_be_arrays() -> None:
    """As `numpy.unique(names, return_inverse=True)`, which the message on targets recommends, and data frames give."""
    images = random.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"class_names, targets = np\.unique\(names, return_inverse=True\)"):
        ImageSet.from_arrays(images, np.array(["dog", "cat", "dog"]))
    class_names, targets = np.unique(["dog", "cat", "dog"], return_inverse=True)
    image_set = ImageSet.from_arrays(
        images,
        targets,
        class_names=class_names,
        ids=np.array(["u", "v", "w"], dtype=object),
        groups=np.array(["g"] * 3),
    )
    assert image_set.class_names == ("cat", "dog")
    assert image_set.targets.tolist() == [1, 0, 1]
    assert image_set.ids == ("u", "v", "w")
    assert image_set.groups == ("g", "g", "g")
    assert {type(name) for name in (*image_set.class_names, *image_set.ids, *image_set.groups)} == {str}
    assert ImageSet.from_arrays(images, targets, ids=np.arange(3)).ids == ("0", "1", "2")


def test_a_group_that_is_spelled_in_two_ways_is_one() -> None:
    images = random.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    groups = [unicodedata.normalize(form, "환자 1") for form in ("NFC", "NFD")]
    assert groups[0] != groups[1]
    image_set = ImageSet.from_arrays(images, [0, 1], groups=groups)
    assert image_set.groups == ("환자 1", "환자 1")


UINT8 = np.zeros((2, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "targets", "options", "message"),
    [
        (UINT8 / 255.0, [0, 1], {}, r"uint8.*float64.*round\(images \* 255\)"),
        (UINT8[..., :2], [0, 1], {}, "1 or 3 channels"),
        (UINT8.transpose(0, 3, 1, 2), [0, 1], {}, "layout='NCHW'"),
        (UINT8, [0, 1], {"layout": "NHCW"}, "layout must be"),
        (UINT8, [0.0, 1.0], {}, "integers of shape"),
        (UINT8, [[0, 1], [1, 0]], {}, "integers of shape"),
        (UINT8, [0, 1, 1], {}, "one for each image"),
        (UINT8, [0, 2], {"class_names": ["a", "b"]}, r"0\.\.2.*2 class names"),
        (UINT8, [-1, 0], {"class_names": ["a", "b"]}, r"-1\.\.0"),
        (UINT8, [0, 1], {"ids": ["x", "x"]}, "'x' repeats"),
        (UINT8, [0, 1], {"ids": ["x"]}, "2 images but 1 ids"),
        (UINT8, [0, 1], {"groups": ["x"]}, "2 images but 1 groups"),
        (UINT8, [0, 1], {"weights": [1, -1]}, "at least 0"),
        (UINT8, [0, 1], {"splits": ["train", "exam"]}, "'exam'"),
    ],
)
def test_what_does_not_fit_is_refused(images, targets, options, message) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet.from_arrays(images, targets, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, "uint8"),
        ({"images": torch.zeros(2, 3, 4, 5, dtype=torch.uint8)}, "channels-last"),
        ({"targets": torch.zeros(2)}, "int64"),
        ({"weights": torch.ones(2, dtype=torch.float64)}, "float32"),
    ],
)
def test_the_constructor_checks(change: dict, message: str) -> None:
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    fitting = {
        "images": images,
        "targets": torch.tensor([0, 1]),
        "class_names": ("a", "b"),
        "ids": ("x", "y"),
    }
    assert len(ImageSet(**fitting)) == 2
    with pytest.raises(DataError, match=message):
        ImageSet(**{**fitting, **change})


def write_pictures(root: Path, sizes: dict[str, tuple[int, int]], mode: str = "RGB") -> Path:
    """Smooth random PNG files; the name's first folder is the class."""
    for name, (width, height) in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).convert(mode).save(path)
    return root


def test_a_folder_is_loaded_with_what_is_broken_left_out(tmp_path: Path) -> None:
    """Reference: Pillow's resize of each file."""
    sizes = {f"{c}/{i}.png": (10 + i, 8) for c in ("cat", "dog") for i in range(4)}
    root = write_pictures(tmp_path / "p", sizes)
    (root / "cat/2.png").write_bytes(b"no picture")
    (root / "dog/film.mp4").write_bytes(b"")
    (root / "loose.png").write_bytes(b"")
    calls: list[tuple[int, int]] = []
    loaded = load_image_set(root, image_size=(6, 7), jobs=1, on_progress=lambda done, n: calls.append((done, n)))
    image_set = loaded.image_set
    ids = [name for name in sorted(sizes) if name != "cat/2.png"]
    assert list(image_set.ids) == ids
    assert image_set.class_counts().tolist() == [3, 4]
    for place, name in enumerate(ids):
        resized = Image.open(root / name).resize((7, 6), Image.Resampling.BILINEAR)
        assert np.array_equal(image_set.images[place].permute(1, 2, 0).numpy(), np.asarray(resized))
    assert {r.path for r in loaded.rejected} == {"loose.png", "cat/2.png", "dog/film.mp4"}
    assert all(r.reason for r in loaded.rejected)
    assert loaded.picture_facts.widths.tolist() == [sizes[name][0] for name in ids]
    assert set(loaded.picture_facts.formats) == {"PNG"}
    assert calls[-1] == (9, 9)
    assert (loaded.source_name, loaded.source_kind) == ("p", "folder")
    assert open_source(loaded.source_location).fingerprint() == open_source(root).fingerprint()


def test_groups_weights_and_parts_come_along_with_the_readable_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path, {f"{i}.png": (8, 8) for i in range(6)})
    (tmp_path / "3.png").write_bytes(b"broken")
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "label", "group", "weight", "split"])
        rows.writerows([f"{i}.png", "ab"[i % 2], f"g{i}", i, "train"] for i in range(6))
    image_set = load_image_set(tmp_path / "t.csv", jobs=1).image_set
    assert image_set.groups == ("g0", "g1", "g2", "g4", "g5")
    assert image_set.weights is not None
    assert image_set.weights.tolist() == [0, 1, 2, 4, 5]
    assert image_set.targets.tolist() == [0, 1, 0, 0, 1]
    assert image_set.splits == ("train",) * 5


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    sizes = {"a/1.png": (8, 8), "b/1.png": (8, 8)}
    root = write_pictures(tmp_path / "p", sizes, mode="L")
    assert load_image_set(root, jobs=1).image_set.images.shape == (2, 1, 8, 8)
    in_colour = load_image_set(root, image_size=8, jobs=1, channels=3).image_set
    assert in_colour.images.shape == (2, 3, 8, 8)


def test_nothing_readable_and_lost_classes_are_refused(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p", {"a/1.png": (8, 8), "b/1.png": (8, 8)})
    (root / "b/1.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"No picture of class 'b' .* b/1\.png"):
        load_image_set(root, image_size=8, jobs=1)
    (root / "a/1.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"None of the 2 files .* a/1\.png"):
        load_image_set(root, image_size=8, jobs=1)


@pytest.mark.parametrize(("resize", "channels"), [("stretch", None), ("crop", 1), ("pad", 3)])
def test_pictures_in_memory_are_fitted_as_files_are(resize: str, channels: int | None, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p", {"a/1.png": (12, 9), "b/1.png": (12, 9)})
    own = load_image_set(root, image_size=(9, 12), jobs=1).image_set
    from_memory = load_image_set(own, image_size=(8, 6), resize=resize, channels=channels)
    from_files = load_image_set(root, image_size=(8, 6), resize=resize, channels=channels, jobs=1)
    assert torch.equal(from_memory.image_set.images, from_files.image_set.images)
    assert (from_memory.source_kind, from_memory.source_location) == ("memory", "")


def test_the_digits_come_as_they_are() -> None:
    loaded = load_image_set("digits")
    assert loaded.image_set.images.shape == (1797, 1, 8, 8)
    assert loaded.source_location == "digits"
    assert load_image_set("digits", image_size=16, channels=3).image_set.images.shape == (1797, 3, 16, 16)


@pytest.mark.parametrize("options", [{"image_size": 0}, {"resize": "squeeze", "image_size": 4}, {"channels": 2}])
def test_impossible_wishes_are_refused(options: dict) -> None:
    with pytest.raises(DataError):
        load_image_set(small_set(), **options)
