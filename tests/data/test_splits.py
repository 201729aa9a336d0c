from __future__ import annotations

import hashlib
import json
import time

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from netloom.data.splits import Split, make_split
from netloom.errors import DataError

PARTS = ("train", "validation", "test")


def part_of(split: Split, n: int) -> np.ndarray:
    """The part's number of each picture; fails where the parts overlap or leave something out."""
    side = np.full(n, -1)
    for number, name in enumerate(PARTS):
        indices = getattr(split, name)
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()
        assert (side[indices] == -1).all()
        side[indices] = number
    assert (side >= 0).all()
    return side


def tied_components(n: int, *keys: list[str | None] | None) -> list[set[int]]:
    """Reference for what must stay together: merge sets until nothing is shared (quadratic)."""
    components = [{i} for i in range(n)]
    for column in keys:
        for value in {k for k in column or [] if k is not None}:
            members = {i for i, k in enumerate(column) if k == value}
            touched = [c for c in components if c & members]
            components = [c for c in components if not c & members] + [set().union(*touched)]
    return components


@pytest.mark.parametrize("seed", range(60))
def test_any_split_is_disjoint_complete_and_keeps_ties_on_one_side(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, n_classes = int(random.integers(40, 300)), int(random.integers(2, 8))
    targets = np.concatenate([np.arange(n_classes), random.integers(0, n_classes, n - n_classes)])
    groups = [None if random.random() < 0.4 else f"g{random.integers(n // 4 + 1)}" for _ in range(n)]
    hashes = [f"h{random.integers(n * 3)}" for _ in range(n)]
    fractions = random.uniform(0.1, 0.3, size=2)
    split = make_split(
        targets=targets,
        groups=groups if seed % 3 else None,
        content_hashes=hashes if seed % 2 else None,
        validation_fraction=fractions[0],
        test_fraction=fractions[1],
        seed=seed,
    )
    side = part_of(split, n)
    components = tied_components(n, groups if seed % 3 else None, hashes if seed % 2 else None)
    for component in components:
        assert len({side[i] for i in component}) == 1
    assert set(targets[split.train]) == set(range(n_classes))
    largest = max(map(len, components))
    test = fractions[1] * n
    assert abs(len(split.test) - test) <= largest + 1
    assert abs(len(split.validation) - fractions[0] * (n - test)) <= largest + 1


@pytest.mark.parametrize("seed", range(20))
def test_single_pictures_have_exact_class_counts(seed: int) -> None:
    """Reference: the share of each class, and scikit-learn's stratified split for the total."""
    random = np.random.default_rng(1000 + seed)
    targets = random.choice(6, size=500, p=random.dirichlet(np.full(6, 3.0)))
    counts = np.bincount(targets, minlength=6)
    targets = targets[np.isin(targets, np.flatnonzero(counts >= 2))]
    targets = np.unique(targets, return_inverse=True)[1]
    counts = np.bincount(targets)
    split = make_split(targets=targets, validation_fraction=0.25, test_fraction=0.2, seed=seed)
    test = np.bincount(targets[split.test], minlength=len(counts))
    validation = np.bincount(targets[split.validation], minlength=len(counts))
    assert (abs(test - 0.2 * counts) <= 1).all()
    assert (abs(validation - 0.25 * (counts - test)) <= 1).all()
    size = round(0.2 * len(targets))
    expected = train_test_split(targets, test_size=size, stratify=targets, random_state=0)[1]
    assert len(split.test) == size
    assert (abs(test - np.bincount(expected, minlength=len(counts))) <= 1).all()


def test_without_a_test_fraction_there_is_no_test_part() -> None:
    """Reference: the validation part that is drawn when another holds the test part out."""
    targets = np.repeat(np.arange(4), [40, 30, 20, 10])
    split = make_split(targets=targets, validation_fraction=0.3, test_fraction=None, seed=5)
    assert (len(split.train), len(split.validation), len(split.test)) == (70, 30, 0)
    assert np.bincount(targets[split.validation]).tolist() == [12, 9, 6, 3]
    assert sorted([*split.train, *split.validation]) == list(range(100))
    pairs = np.arange(100) // 2
    tied = make_split(targets=targets, content_hashes=[str(pair) for pair in pairs], test_fraction=None, seed=5)
    assert not set(pairs[tied.train]) & set(pairs[tied.validation])
    assert len(tied.test) == 0
    assert split.notes == ()
    given = make_split(targets=targets, parts=["validation", *["train"] * 99], test_fraction=None, seed=5)
    assert (len(given.train), given.validation.tolist(), given.test.tolist()) == (99, [0], [])


def test_balanced_groups_are_spread_in_proportion() -> None:
    targets = np.repeat(np.arange(5), 200)
    groups = [f"patient {i // 4}" for i in range(1000)]
    split = make_split(targets=targets, groups=groups, seed=3)
    for part, share in ((split.test, 0.2), (split.validation, 0.16), (split.train, 0.64)):
        assert (abs(np.bincount(targets[part]) - 200 * share) <= 4).all()


def test_a_split_depends_on_its_seed_alone() -> None:
    targets = np.tile(np.arange(4), 50)
    hashes = [str(i // 2) for i in range(200)]
    first = make_split(targets=targets, content_hashes=hashes, seed=1)
    np.random.seed(0)  # noqa: NPY002 - a global stream must have no influence
    again = make_split(targets=targets, content_hashes=hashes, seed=1)
    other = make_split(targets=targets, content_hashes=hashes, seed=2)
    assert first.to_json(list(map(str, range(200)))) == again.to_json(list(map(str, range(200))))
    assert set(first.test) != set(other.test)


def test_every_picture_is_tested_by_some_seed() -> None:
    """No picture is favoured: over 60 seeds, 40 pictures of one class at 20%, each is drawn."""
    targets = np.tile([0, 1], 20)
    drawn = np.zeros(40)
    for seed in range(60):
        drawn[make_split(targets=targets, seed=seed).test] += 1
    assert drawn.sum() == 60 * 8
    assert drawn.min() > 0
    assert drawn.max() < 30  # binomial(60, 0.2): 12 expected, standard deviation 3.1


def test_three_given_parts_are_used_as_they_are() -> None:
    parts = ["train", "validation", "test", "train", "test", "train"]
    split = make_split(targets=[0, 0, 0, 1, 1, 1], parts=parts, seed=5)
    assert split.method == "given"
    assert (split.train.tolist(), split.validation.tolist(), split.test.tolist()) == (
        [0, 3, 5],
        [1],
        [2, 4],
    )


@pytest.mark.parametrize(("given", "drawn"), [("test", "validation"), ("validation", "test")])
def test_the_missing_part_is_drawn_from_training(given: str, drawn: str) -> None:
    targets = np.tile([0, 1], 100)
    parts = ["train"] * 120 + [given] * 80
    hashes = [str(i // 4) for i in range(200)]
    split = make_split(targets=targets, parts=parts, content_hashes=hashes, seed=5)
    assert split.method == f"given {given}, stratified {drawn}"
    assert getattr(split, given).tolist() == list(range(120, 200))
    new = getattr(split, drawn)
    assert len(new) == 24
    assert np.bincount(targets[new]).tolist() == [12, 12]
    assert not {i // 4 for i in new} & {i // 4 for i in split.train}


def test_given_parts_that_share_pictures_are_kept_and_told() -> None:
    hashes = ["a", "b", "c", "a", "d", "e"]
    parts = ["train", "train", "validation", "test", "test", "validation"]
    split = make_split(targets=[0, 1, 0, 0, 1, 1], parts=parts, content_hashes=hashes, seed=0)
    assert split.test.tolist() == [3, 4]
    [note] = split.test_notes
    assert note.startswith("1 of the 2 pictures of the given test part")
    assert note in split.notes
    assert Split.from_json(split.to_json("abcdef"), "abcdef").test_notes == (note,)


def test_a_class_of_one_trains_and_is_told() -> None:
    targets = [0] * 20 + [1] * 20 + [2]
    names = ["cat", "dog", "axolotl"]
    split = make_split(targets=targets, class_names=names, seed=0)
    assert 40 in split.train
    assert [note for note in split.notes if "'axolotl'" in note and "test" in note]


def test_three_groups_give_three_parts() -> None:
    targets = np.tile([0, 1], 15)
    groups = [str(i // 10) for i in range(30)]
    split = make_split(targets=targets, groups=groups, seed=0)
    assert sorted(map(len, (split.train, split.validation, split.test))) == [10, 10, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": [0, 1]}, "leave nothing for the validation and the test part"),
        (
            {"targets": [0, 1] * 9, "groups": ["a"] * 9 + ["b"] * 9},
            "count as one",
        ),
        ({"targets": [0, 1] * 9, "test_fraction": 1.0}, r"test_fraction is 1\.0"),
        ({"targets": [0, 1] * 9, "validation_fraction": -0.1}, "validation_fraction"),
        (
            {"targets": [0, 1, 0], "parts": ["train", "test", "validation"]},
            "training part has no picture of 'dog'",
        ),
        ({"targets": [0, 1], "parts": ["test", "validation"]}, "no training part"),
        ({"targets": [0, 1], "parts": ["train", "holdout"]}, "holdout"),
        ({"targets": [0, 1, 1], "parts": ["train", "test", None]}, "None"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_split(**{"seed": 0, "class_names": ["cat", "dog"], **arguments})


def test_a_manifest_survives_a_new_order() -> None:
    ids = [f"{i:03}.png" for i in range(60)]
    split = make_split(targets=np.tile([0, 1, 2], 20), seed=9)
    manifest = json.loads(json.dumps(split.to_json(ids)))
    shuffled = [ids[i] for i in np.random.default_rng(0).permutation(60)]
    read = Split.from_json(manifest, [*shuffled, "new.png"])
    for name in PARTS:
        before = {ids[i] for i in getattr(split, name)}
        assert {[*shuffled, "new.png"][i] for i in getattr(read, name)} == before
    assert (read.method, read.seed, read.notes) == (split.method, split.seed, split.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ["gone.png", "a"]}, "'gone.png'"),
        ({"train": ["a", "b"]}, "more than once"),
        ({"seed": None}, "damaged"),
        ({"test": 3}, "damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    manifest = {
        "method": "given",
        "seed": 0,
        "notes": [],
        "train": ["a"],
        "validation": ["b"],
        "test": ["c"],
    }
    with pytest.raises(DataError, match=message):
        Split.from_json({**manifest, **change}, ["a", "b", "c"])


@pytest.mark.parametrize("tied", [False, True])
def test_100_000_pictures_take_about_a_second(tied: bool) -> None:
    n = 100_000
    targets = np.random.default_rng(0).integers(0, 100, n)
    hashes = [f"{i // 2 if tied else i:032x}" for i in range(n)]
    start = time.process_time()
    make_split(targets=targets, content_hashes=hashes, seed=0)
    assert time.process_time() - start < 3  # 0.4 and 0.9 s on one core; room for a slow machine


def test_without_a_validation_fraction_there_is_no_validation_part() -> None:
    """Reference: the test part that is drawn beside one, and the training part with what would validate."""
    targets = np.repeat(np.arange(4), [40, 30, 20, 10])
    whole, split = make_split(targets=targets, seed=5), make_split(targets=targets, validation_fraction=0.0, seed=5)
    assert len(split.validation) == 0
    assert split.validation.dtype == np.int64
    assert len(split.test) == len(whole.test) == 20
    assert sorted([*split.train, *split.test]) == list(range(100))
    ids = [f"{i}" for i in range(100)]
    assert Split.from_json(split.to_json(ids), ids).validation.dtype == np.int64
    everything = make_split(targets=targets, validation_fraction=0.0, test_fraction=None, seed=5)
    assert everything.train.tolist() == list(range(100))
    given = make_split(targets=targets, parts=["validation", *["train"] * 99], validation_fraction=0.0, seed=5)
    assert given.validation.tolist() == [0]


def grouped(n: int, kind: str) -> dict[str, list[str]]:
    """Pictures tied together in bursts of 1 to 5, by their groups, their content or both."""
    bursts = [f"burst {i}" for i in np.sort(np.random.default_rng(n).integers(0, n // 3, n))]
    copies = [str(i // 2) for i in range(n)]
    return {**({"groups": bursts} if "g" in kind else {}), **({"content_hashes": copies} if "c" in kind else {})}


@pytest.mark.parametrize("kind", ["", "g", "c", "gc"])
@pytest.mark.parametrize("n", [60, 1001])
def test_the_validation_fraction_does_not_change_what_tests(n: int, kind: str) -> None:
    targets = np.random.default_rng(7).choice(5, size=n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    splits = [
        make_split(targets=targets, validation_fraction=fraction, seed=4, **grouped(n, kind))
        for fraction in (0.0, 0.04, 0.2, 0.3)
    ]
    for split in splits[1:]:
        assert split.test.tolist() == splits[0].test.tolist()
        assert len(split.validation) > 0
    assert sorted([*splits[2].train, *splits[2].validation]) == splits[0].train.tolist()


def test_a_test_part_gives_up_a_group_where_no_other_could_validate() -> None:
    """Four patients, two of each class: one of each class must train, and the test part would have both others."""
    targets = np.repeat([0, 1, 0, 1], 10)
    groups = [str(i // 10) for i in range(40)]
    split = make_split(targets=targets, groups=groups, validation_fraction=0.2, test_fraction=0.5, seed=0)
    assert [len(split.train), len(split.validation), len(split.test)] == [20, 10, 10]
    assert set(targets[split.train]) == {0, 1}


@pytest.mark.parametrize(
    ("n", "fraction", "tied", "given_test", "no_test"),
    [
        (60, 0.04, False, "2b588b23ffd4cabb", "7b2f27de05ab53d4"),
        (60, 0.04, True, "2918acffb73768e7", "6807ecef5a20249a"),
        (60, 0.2, False, "8ccb1c4309774c32", "88311ede4e4429f3"),
        (60, 0.2, True, "1f6fcee050aa0653", "81d06f1416f7ecba"),
        (1000, 0.04, False, "4a7bdb09ecfa9726", "55b358e5ce331f9d"),
        (1000, 0.04, True, "8d2b463be84d35eb", "8a22be2a71165e74"),
        (1000, 0.2, False, "3823717cf26dd280", "bff441ba47141d59"),
        (1000, 0.2, True, "5f4c147fa91b6601", "5a68b67e4147158f"),
        (5001, 0.04, False, "06f626e7100b87ce", "1d170ae5f628fd1a"),
        (5001, 0.04, True, "afe7435c7386eedb", "1454492283490600"),
        (5001, 0.2, False, "1cf53e8eff520b33", "03f78f75def9b915"),
        (5001, 0.2, True, "8caf86a6306b21f5", "366a2840faa419ba"),
    ],
)
def test_a_validation_part_beside_a_given_test_part_stays_what_it_was(
    n: int, fraction: float, tied: bool, given_test: str, no_test: str
) -> None:
    """Reference: digests of the parts that version 0.1 drew; published results are reproduced with them."""
    targets = np.arange(n) * 7 % 11 % 5
    parts = ["test" if i % 6 == 5 else "train" for i in range(n)]
    hashes = [str(i // 3) if i % 4 else f"alone {i}" for i in range(n)] if tied else None
    shared = {"targets": targets, "content_hashes": hashes, "validation_fraction": fraction, "seed": n}
    assert digest(make_split(parts=parts, **shared)) == given_test
    assert digest(make_split(test_fraction=None, **shared)) == no_test


def digest(split: Split) -> str:
    parts = (split.train, split.validation, split.test)
    return hashlib.sha256(b"|".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()[:16]
