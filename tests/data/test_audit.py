from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netloom.data.audit import audit
from netloom.data.imageset import ImageSet, load_image_set

random = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 cats and 5 dogs in three parts, with copies and broken files."""
    for i in range(30):
        part = ("train", "validation", "test")[0 if i < 20 else 1 + i % 2]
        shape = (8 + i, 12, 3) if i % 3 else (8 + i, 12)
        save(tmp_path / part / "cat" / f"{i:02}.png", random.integers(0, 256, shape, dtype=np.uint8))
    for i in range(5):
        save(
            tmp_path / ("train", "test")[i % 2] / "dog" / f"{i:02}.jpg",
            random.integers(0, 256, (9, 9, 3), dtype=np.uint8),
        )
    original = (tmp_path / "train/cat/00.png").read_bytes()
    (tmp_path / "train/cat/copy.png").write_bytes(original)
    (tmp_path / "test/dog/mislabelled.png").write_bytes(original)
    (tmp_path / "train/dog/broken.jpg").write_bytes(b"\xff\xd8 no more")
    return tmp_path


def test_counts_and_findings(photos: Path) -> None:
    found = audit(load_image_set(photos, image_size=8, jobs=1)).to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["pictures"] == 37
    assert found["classes"] == {"cat": 31, "dog": 6}
    assert found["parts"] == {
        "train": {"cat": 21, "dog": 3},
        "validation": {"cat": 5, "dog": 0},
        "test": {"cat": 5, "dog": 3},
    }
    assert [r["path"] for r in found["rejected"]] == ["train/dog/broken.jpg"]
    assert all(set(r) == {"path", "reason"} and r["reason"] for r in found["rejected"])
    group = ["test/dog/mislabelled.png", "train/cat/00.png", "train/cat/copy.png"]
    assert found["duplicates"] == found["conflicting_labels"] == [group]
    assert found["duplicates_across_parts"] == [group]
    heights = [8 + i for i in range(30)] + [9] * 5 + [8, 8]
    assert found["heights"] == {"min": 8, "median": statistics.median(heights), "max": 37}
    assert found["widths"] == {"min": 9, "median": 12, "max": 12}
    assert found["modes"] == {"RGB": 25, "L": 12}
    assert found["formats"] == {"PNG": 32, "JPEG": 5}
    words = "\n".join(found["warnings"])
    for expected in ("left out", "copy of another", "given parts", "several classes", "'dog' (6)", "unequal"):
        assert expected in words


def test_the_text_names_everything(photos: Path) -> None:
    found = audit(load_image_set(photos, image_size=8, jobs=1))
    text = found.to_text()
    for expected in ("37 pictures", "cat: 31", "train/dog/broken.jpg", "train/cat/copy.png", "8 to 37"):
        assert expected in text
    assert all(warning in text for warning in found.warnings)


def test_sound_pictures_have_no_warnings() -> None:
    images = random.integers(0, 256, (60, 6, 6), dtype=np.uint8)
    found = audit(load_image_set(ImageSet.from_arrays(images, np.arange(60) % 2)))
    assert found.warnings == []
    assert found.parts == {}
    assert (found.kind, found.formats, found.modes) == ("memory", {"array": 60}, {"L": 60})


def test_copies_among_arrays_are_found_by_their_pixels() -> None:
    """Reference: scikit-learn's digits hold no two equal pictures; then one is put in twice."""
    digits = load_image_set("digits")
    pixels = digits.image_set.images.permute(0, 2, 3, 1).reshape(1797, -1).numpy()
    assert len(np.unique(pixels, axis=0)) == 1797
    assert audit(digits).duplicates == []
    twice = ImageSet.from_arrays(digits.image_set.images[[5, 6, 5]], [0, 1, 0], layout="NCHW")
    assert audit(load_image_set(twice)).duplicates == [["00000", "00002"]]
