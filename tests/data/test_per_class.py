"""Few pictures of each class: exact counts, copies once, ties last, nested, and the other parts untouched."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from netloom.data.folds import Scheme, make_folds
from netloom.data.splits import Split, make_split
from netloom.errors import DataError

NAMES = ("cat", "dog", "owl", "고양이")


def labelled(seed: int, n: int = 400) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([np.arange(4), random.choice(4, n - 4, p=[0.4, 0.3, 0.2, 0.1])])


@pytest.mark.parametrize("seed", range(10))
def test_each_class_has_so_many_and_the_other_parts_are_whole(seed: int) -> None:
    targets = labelled(seed)
    groups = [f"g{i // 3}" if i % 2 else None for i in range(len(targets))] if seed % 2 else None
    whole = make_split(targets=targets, groups=groups, class_names=NAMES, seed=seed)
    few = make_split(targets=targets, groups=groups, class_names=NAMES, per_class=7, seed=seed)
    assert np.bincount(targets[few.train]).tolist() == [7] * 4
    assert few.train.dtype == np.int64
    assert (np.diff(few.train) > 0).all()
    assert set(few.train.tolist()) < set(whole.train.tolist())
    assert (few.validation == whole.validation).all()
    assert (few.test == whole.test).all()
    assert (few.method, few.seed, few.per_class, whole.per_class) == (whole.method, seed, 7, None)


def test_fewer_are_among_more_and_the_seed_decides() -> None:
    targets, whole = labelled(3), set(range(400))
    for n in (1, 2, 5, 10, 20):
        drawn = make_split(targets=targets, class_names=NAMES, per_class=n, seed=1)
        again = make_split(targets=targets, class_names=NAMES, per_class=n, seed=1)
        assert (drawn.train == again.train).all()
    sizes = [set(make_split(targets=targets, per_class=n, seed=1).train.tolist()) for n in (20, 10, 5, 2, 1)]
    for smaller, larger in zip(sizes[1:], sizes, strict=False):
        assert smaller < larger <= whole
    # With given parts the seed has nothing else to draw.
    parts = ["test" if i % 5 == 0 else "validation" if i % 5 == 1 else "train" for i in range(400)]
    draws = {tuple(make_split(targets=targets, parts=parts, per_class=5, seed=seed).train) for seed in range(5)}
    assert len(draws) == 5


def test_every_picture_is_as_likely_as_any_other() -> None:
    """Reference: the binomial distribution; five of each 20, a thousand times, is 250 with deviation 13.7."""
    targets, parts = np.repeat([0, 1], 25), (["train"] * 20 + ["validation"] * 3 + ["test"] * 2) * 2
    counts: Counter[int] = Counter()
    for seed in range(1000):
        counts.update(make_split(targets=targets, parts=parts, per_class=5, seed=seed).train.tolist())
    assert len(counts) == 40
    assert max(abs(n - 250) for n in counts.values()) < 5 * 13.7


def test_copies_count_once_and_ties_come_last() -> None:
    targets = np.repeat([0, 1], 16)
    hashes = [f"h{i // 2}" for i in range(32)]  # eight pictures of each class, each of them twice
    parts = ["train"] * 32
    parts[0:2] = parts[16:18] = ["test", "test"]
    parts[2:4] = parts[18:20] = ["validation", "validation"]
    split = make_split(targets=targets, parts=parts, content_hashes=hashes, per_class=6, seed=0)
    assert len({hashes[i] for i in split.train}) == len(split.train) == 12
    with pytest.raises(DataError, match=r"'0' \(6\), '1' \(6\); copies of one picture count once"):
        make_split(targets=targets, parts=parts, content_hashes=hashes, per_class=7, seed=0)
    patients = [f"p{i // 4}" for i in range(32)]  # four patients of a class, the first of whom tests and validates
    for seed in range(20):
        three = make_split(targets=targets, parts=parts, groups=patients, per_class=3, seed=seed)
        assert len({patients[i] for i in three.train}) == 6
        five = make_split(targets=targets, parts=parts, groups=patients, per_class=5, seed=seed)
        assert max(Counter(patients[i] for i in five.train).values()) == 2


def test_a_scarce_class_is_named_with_the_largest_number_there_is() -> None:
    targets = np.repeat(np.arange(4), [100, 50, 20, 10])
    split = make_split(targets=targets, class_names=NAMES, seed=0)
    counts = np.bincount(targets[split.train])
    with pytest.raises(DataError) as refused:
        make_split(targets=targets, class_names=NAMES, per_class=15, seed=0)
    text = str(refused.value)
    assert f"per_class is 15, but the training part has fewer pictures of '고양이' ({counts[3]})" in text
    assert f", 'owl' ({counts[2]}); copies" in text
    assert f"Take at most {counts[3]}, the largest number possible" in text
    assert "cat" not in text
    largest = make_split(targets=targets, class_names=NAMES, per_class=int(counts[3]), seed=0)
    assert np.bincount(targets[largest.train]).tolist() == [counts[3]] * 4


def test_a_class_without_any_picture_is_none_that_is_scarce() -> None:
    split = make_split(targets=np.repeat([0, 2], 20), class_names=("a", "empty", "c"), per_class=3, seed=0)
    assert len(split.train) == 6


def test_folds_draw_for_each_training_from_its_own_part() -> None:
    targets = labelled(5)
    whole = make_folds(Scheme(4), targets=targets, class_names=NAMES, seed=2)
    few = make_folds(Scheme(4), targets=targets, class_names=NAMES, per_class=6, seed=2)
    for one, other in zip(few, whole, strict=True):
        assert np.bincount(targets[one.split.train]).tolist() == [6] * 4
        assert set(one.split.train.tolist()) < set(other.split.train.tolist())
        assert (one.split.validation == other.split.validation).all()
        assert (one.split.test == other.split.test).all()
    assert len({tuple(fold.split.train) for fold in few}) == 4
    first, second = (set(fold.split.train.tolist()) for fold in few[:2])
    both = set(whole[0].split.train.tolist()) & set(whole[1].split.train.tolist())
    assert len(first & second) < 0.5 * len(first)  # the same draw would share nearly all that both parts have
    assert len(both) > 0.5 * len(whole[0].split.train)


def test_of_folds_the_poorest_tells_the_largest_number() -> None:
    targets = np.repeat(np.arange(2), [60, 11])
    whole = make_folds(Scheme(3), targets=targets, seed=1)
    least = min(int((targets[fold.split.train] == 1).sum()) for fold in whole)
    with pytest.raises(DataError, match=rf"training parts of the folds have .* at most {least}, the"):
        make_folds(Scheme(3), targets=targets, per_class=50, seed=1)
    assert len(make_folds(Scheme(3), targets=targets, per_class=least, seed=1)) == 3


def test_the_manifest_keeps_it_and_older_ones_have_none() -> None:
    ids = [f"{i}.png" for i in range(400)]
    split = make_split(targets=labelled(0), per_class=4, seed=9)
    manifest = split.to_json(ids)
    back = Split.from_json(manifest, ids)
    assert (back.per_class, back.train.tolist()) == (4, split.train.tolist())
    del manifest["per_class"]
    assert Split.from_json(manifest, ids).per_class is None
    with pytest.raises(DataError, match="damaged"):
        Split.from_json({**manifest, "per_class": "many"}, ids)
