from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from data.test_splits import tied_components
from netloom.data.folds import Fold, Scheme, make_folds
from netloom.errors import DataError


def check(folds: list[Fold], used: np.ndarray, repeats: int) -> None:
    """In each training the three parts are disjoint and hold all; in each repeat every picture tests once."""
    tested: Counter[tuple[int, int]] = Counter()
    for fold in folds:
        parts = [fold.split.train, fold.split.validation, fold.split.test]
        everything = np.concatenate(parts)
        assert (np.sort(everything) == used).all()
        for part in parts:
            assert part.dtype == np.int64
            assert len(part)
            assert (np.diff(part) > 0).all()
        tested.update((fold.repeat, i) for i in fold.split.test.tolist())
    assert tested == {(repeat + 1, i): 1 for repeat in range(repeats) for i in used.tolist()}


@pytest.mark.parametrize("seed", range(30))
def test_folds_cover_everything_once_and_keep_ties_on_one_side(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, n_classes, k = int(random.integers(80, 300)), int(random.integers(2, 5)), int(random.integers(2, 6))
    targets = np.concatenate([np.arange(n_classes), random.integers(0, n_classes, n - n_classes)])
    groups = [None if random.random() < 0.5 else f"g{random.integers(n // 3)}" for _ in range(n)] if seed % 3 else None
    hashes = [f"h{random.integers(n * 3)}" for _ in range(n)] if seed % 2 else None
    parts = ["test" if random.random() < 0.1 else "train" for _ in range(n)] if seed % 5 == 0 else None
    used = np.array([i for i in range(n) if parts is None or parts[i] != "test"])
    repeats = 1 + seed % 2
    folds = make_folds(
        Scheme(k, repeats), targets=targets, parts=parts, groups=groups, content_hashes=hashes, seed=seed
    )
    assert len({fold.name for fold in folds}) == len(folds) == k * repeats
    check(folds, used, repeats)
    components = tied_components(n, groups, hashes)
    for fold in folds:
        side = np.full(n, -1)
        for number, name in enumerate(("train", "validation", "test")):
            side[getattr(fold.split, name)] = number
        for component in components:
            assert len({side[i] for i in component} - {-1}) <= 1
        assert set(targets[fold.split.train]) == set(targets[used])


@pytest.mark.parametrize("seed", range(15))
def test_single_pictures_are_spread_as_evenly_as_scikit_learn_does(seed: int) -> None:
    """Every class differs by at most one picture between folds, as in StratifiedKFold; so do whole folds."""
    random = np.random.default_rng(seed)
    k = int(random.integers(2, 8))
    targets = np.concatenate([np.repeat(np.arange(4), k), random.choice(4, 200, p=random.dirichlet(np.full(4, 2.0)))])
    folds = make_folds(Scheme(k), targets=targets, seed=seed)
    ours = np.array([np.bincount(targets[fold.split.test], minlength=4) for fold in folds])
    theirs = np.array(
        [
            np.bincount(targets[test], minlength=4)
            for _, test in StratifiedKFold(k, shuffle=True, random_state=seed).split(targets, targets)
        ]
    )
    assert (np.sort(ours, axis=0) == np.sort(theirs, axis=0)).all()
    assert np.ptp(ours.sum(axis=1)) <= 1


def imbalance(targets: np.ndarray, tests: list[np.ndarray]) -> float:
    """Standard deviation of the share of each class over the folds, the mean over the classes."""
    n_classes = int(targets.max()) + 1
    shares = [np.bincount(targets[test], minlength=n_classes) / np.bincount(targets) for test in tests]
    return float(np.std(shares, axis=0).mean())


def test_groups_are_spread_about_as_evenly_as_scikit_learn_does() -> None:
    """The mean over 20 random data sets, against StratifiedGroupKFold."""
    ours, theirs = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        targets = random.choice(3, 400, p=[0.5, 0.3, 0.2])
        groups = random.integers(0, 60, 400)
        folds = make_folds(Scheme(5), targets=targets, groups=[str(group) for group in groups], seed=seed)
        ours.append(imbalance(targets, [fold.split.test for fold in folds]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
            theirs.append(imbalance(targets, [test for _, test in splitter.split(targets, targets, groups)]))
    assert np.mean(ours) <= 1.1 * np.mean(theirs)


def test_folds_depend_on_the_seed_and_the_repeat_alone() -> None:
    targets = np.arange(90) % 3
    first, again, other = (make_folds(Scheme(3, 2), targets=targets, seed=seed) for seed in (4, 4, 5))
    for one, same, different in zip(first, again, other, strict=True):
        assert (one.split.test == same.split.test).all()
        assert (one.split.validation == same.split.validation).all()
        assert not (one.split.test == different.split.test).all()
    assert not (first[0].split.test == first[3].split.test).all()


def test_hold_out_draws_the_fraction_anew() -> None:
    targets = np.repeat([0, 1], [60, 40])
    folds = make_folds(Scheme(None, 4, 0.25), targets=targets, seed=0)
    assert [fold.name for fold in folds] == ["repeat-1", "repeat-2", "repeat-3", "repeat-4"]
    for fold in folds:
        assert np.bincount(targets[fold.split.test]).tolist() == [15, 10]
    assert len({tuple(fold.split.test) for fold in folds}) == 4


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ({"folds": 1}, "at least 2, not 1"),
        ({"folds": 3, "repeats": 0}, "repeats must be at least 1"),
        ({"folds": 3, "holdout": 0.2}, "not both"),
        ({"folds": None}, "either folds or"),
        ({"folds": None, "holdout": 1.0, "repeats": 3}, "between 0 and 1"),
        ({"folds": None, "holdout": 0.2}, "at least 2 repeats"),
    ],
)
def test_impossible_schemes(scheme: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Scheme(**scheme)  # type: ignore[arg-type]


def test_more_folds_than_a_class_has_pictures_or_groups() -> None:
    targets = np.repeat([0, 1], [20, 4])
    with pytest.raises(DataError, match=r"5 folds are too many for 'rare'.*has 4 independent.*at most 4 folds"):
        make_folds(Scheme(5), targets=targets, class_names=["common", "rare"], seed=0)
    groups = [None] * 20 + ["a", "a", "b", "b"]
    with pytest.raises(DataError, match="has 2 independent pictures"):
        make_folds(Scheme(3), targets=targets, groups=groups, seed=0)
    with pytest.raises(DataError, match=r"has 1 independent picture .*Leave it out"):
        make_folds(Scheme(2), targets=targets, content_hashes=[str(i) for i in range(20)] + ["x"] * 4, seed=0)
    assert len(make_folds(Scheme(4), targets=targets, seed=0)) == 4
