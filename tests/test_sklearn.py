from __future__ import annotations

import inspect
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

import netloom
from netloom.data.imageset import ImageSet
from netloom.data.splits import make_split
from netloom.errors import ArgumentError, NetloomError, RunError
from netloom.recipe import Recipe, load_recipe
from netloom.runtime import ExecutionPlan
from netloom.sklearn import RECIPE_KEYS, ImageClassifier

PAGE = Path(__file__).parent.parent / "docs" / "sklearn.md"
QUICK: dict[str, Any] = {"recipe": "digits", "filters": [8], "epochs": 2}

digits = load_digits()
PICTURES = (digits.images * 15.9375).astype(np.uint8)  # 16 becomes 255
LABELS = digits.target
TRAIN, TEST = slice(0, 300), slice(300, 400)

TABLES = ImageClassifier(
    "fashion-mlp",
    image_size=None,
    color="auto",
    dense_units=[32],
    input_scaling="standardize",
    optimizer="adam",
    learning_rate=0.02,
    epochs=25,
)
NOT_FOR_PICTURES = {
    "check_sample_weight_equivalence_on_dense_data": "steps are taken on batches, and the validation part is drawn: a "
    "weight of 2 is not a repetition",
}


# Not scikit-learn's `parametrize_with_checks`: before 1.9 it gives a generator, which pytest 9 deprecates.
CHECKS = list(estimator_checks_generator(TABLES, expected_failed_checks=NOT_FOR_PICTURES, mark="xfail"))


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=lambda value: getattr(value, "func", type(value)).__name__)
def test_scikit_learns_own_checks(estimator: ImageClassifier, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> ImageClassifier:
    return ImageClassifier(**QUICK).fit(PICTURES[TRAIN], LABELS[TRAIN])


def probabilities(estimator: ImageClassifier, pictures: Any = PICTURES[TEST]) -> Any:
    found = estimator.predict_proba(pictures)
    assert found.dtype == np.float32
    assert found.shape == (len(pictures), len(estimator.classes_))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    return found


def test_it_learns() -> None:
    """Reference: always guessing the commonest of ten digits is right in a tenth."""
    estimator = ImageClassifier("digits", filters=[16, 32], epochs=6, learning_rate=0.01)
    estimator.fit(PICTURES[:600], LABELS[:600])
    assert estimator.score(PICTURES[600:], LABELS[600:]) > 0.8
    assert [row["epoch"] for row in estimator.history_] == [1, 2, 3, 4, 5, 6]
    losses = [row["validation_loss"] for row in estimator.history_]
    assert (estimator.n_iter_, estimator.kept_epoch_) == (6, 1 + int(np.argmin(losses)))


def test_it_is_the_training_of_netloom_train(tmp_path: Path, fitted: ImageClassifier) -> None:
    """Reference: `netloom.train` on the same pictures, given the same parts, with one thread."""
    split = make_split(
        targets=LABELS[TRAIN],
        content_hashes=ImageSet.from_arrays(PICTURES[TRAIN], LABELS[TRAIN]).content_hashes,
        test_fraction=None,
        seed=0,
    )
    parts = np.full(400, "test", dtype=object)
    parts[split.train], parts[split.validation] = "train", "validation"
    image_set = ImageSet.from_arrays(PICTURES[:400], LABELS[:400], splits=parts.tolist())
    run = netloom.train(image_set, **QUICK, shards=0, plan=ExecutionPlan("cpu", 1, "float32"), out=tmp_path, quiet=True)
    with safe_open(run.weights_path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = fitted._fitted.network.state_dict()
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    np.testing.assert_array_equal(run.test_predictions()[0], probabilities(fitted))
    assert run.recipe.replace(image_size=None, precision="float32") == fitted.recipe_


def test_arguments_are_the_recipes_keys() -> None:
    names = list(inspect.signature(ImageClassifier).parameters)
    own = ["recipe", "image_shape", "device", "random_state", "n_jobs", "verbose"]
    unused = {"name", "description", "custom_model", "test_fraction", "keep_every", "tensorboard", "seed"}
    assert names == own + [key for key in Recipe.model_fields if key not in unused]
    given = ImageClassifier(**dict.fromkeys(names, 7)).get_params()
    assert given == dict.fromkeys(names, 7)
    with pytest.raises(TypeError, match=r"'epocs'\. Did you mean 'epochs'"):
        ImageClassifier(epocs=3)
    with pytest.raises(TypeError, match=r"'seed'\. Its name is random_state"):
        ImageClassifier(seed=3)
    with pytest.raises(TypeError, match="too many positional"):
        ImageClassifier("digits", "cpu")


def test_what_is_not_given_is_as_the_recipe_says() -> None:
    estimator = ImageClassifier("digits", augmentation={"rotation": 3}, schedule=None, random_state=5)
    expected = load_recipe("digits", {"augmentation": {"rotation": 3}, "schedule": None, "seed": 5})
    assert estimator._recipe() == expected
    assert expected.augmentation is not None
    assert expected.augmentation.zoom == 0.1
    assert ImageClassifier()._recipe() == load_recipe("photos")


def test_values_that_searches_draw_are_taken() -> None:
    estimator = ImageClassifier(
        "digits",
        epochs=np.int64(3),
        dropout=np.float64(0.25),
        filters=np.array([4, 8]),
        optimizer=np.str_("adam"),
        augmentation={np.str_("rotation"): np.float32(2)},
        class_weight={np.int64(3): np.float64(2)},
        random_state=np.int64(9),
    )
    expected = {"epochs": 3, "dropout": 0.25, "filters": [4, 8], "optimizer": "adam", "seed": 9}
    groups = {"augmentation": {"rotation": 2.0}, "class_weight": {"3": 2.0}}
    assert estimator._recipe() == load_recipe("digits", {**expected, **groups})


def test_keys_in_groups_are_set_one_by_one() -> None:
    estimator = ImageClassifier(augmentation={"zoom": 0.2}, early_stopping=None)
    estimator.set_params(augmentation__rotation=10, early_stopping__patience=3, epochs=4)
    assert estimator.augmentation == {"zoom": 0.2, "rotation": 10}
    assert (estimator.early_stopping, estimator.epochs) == ({"patience": 3}, 4)
    deep = estimator.get_params()
    assert (deep["augmentation__rotation"], deep["early_stopping__patience"]) == (10, 3)
    assert not any("__" in name for name in estimator.get_params(deep=False))
    copied = clone(estimator)
    copied.set_params(augmentation__rotation=20)
    assert estimator.augmentation["rotation"] == 10
    assert clone(estimator).set_params(**deep).get_params() == deep
    with pytest.raises(ValueError, match=r"augmentation has no key 'rotaton'\. Did you mean 'rotation'"):
        estimator.set_params(augmentation__rotaton=1)
    with pytest.raises(ValueError, match="Invalid parameter 'epocs'"):
        estimator.set_params(epocs=1)


def test_one_seed_gives_the_same_bits_and_another_one_does_not(fitted: ImageClassifier) -> None:
    first = probabilities(fitted)
    again = clone(fitted).fit(PICTURES[TRAIN], LABELS[TRAIN])
    np.testing.assert_array_equal(probabilities(again), first)
    seeded = [clone(fitted).set_params(random_state=state) for state in (0, 1, np.random.RandomState(3))]
    found = [probabilities(estimator.fit(PICTURES[TRAIN], LABELS[TRAIN])) for estimator in seeded]
    np.testing.assert_array_equal(found[0], first)  # the recipe's own seed is 0
    assert (found[1] != first).any()
    drawn = int(np.random.RandomState(3).randint(2**31 - 1))
    assert seeded[2].recipe_.seed == drawn


def test_layouts_of_the_same_pictures_are_the_same(fitted: ImageClassifier) -> None:
    grey = PICTURES[:400]
    colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    last = ImageClassifier(**QUICK).fit(colour[TRAIN], LABELS[TRAIN])
    first = clone(last).fit(colour[TRAIN].transpose(0, 3, 1, 2), LABELS[TRAIN])
    rows = clone(last).set_params(image_shape=(8, 8, 3)).fit(colour[TRAIN].reshape(300, -1), LABELS[TRAIN])
    planes = clone(last).set_params(image_shape=(3, 8, 8))
    planes.fit(colour[TRAIN].transpose(0, 3, 1, 2).reshape(300, -1), LABELS[TRAIN])
    expected = probabilities(last, colour[TEST])
    np.testing.assert_array_equal(probabilities(first, colour[TEST].transpose(0, 3, 1, 2)), expected)
    np.testing.assert_array_equal(probabilities(rows, colour[TEST].reshape(100, -1)), expected)
    np.testing.assert_array_equal(probabilities(planes, colour[TEST].transpose(0, 3, 1, 2).reshape(100, -1)), expected)
    assert {last.n_features_in_, first.n_features_in_, rows.n_features_in_} == {192}
    flat = ImageClassifier(**QUICK).fit(grey[TRAIN].reshape(300, 64), LABELS[TRAIN])
    np.testing.assert_array_equal(probabilities(flat, grey[TEST].reshape(100, 64)), probabilities(fitted))
    with_axis = ImageClassifier(**QUICK).fit(grey[TRAIN, :, :, None], LABELS[TRAIN])
    np.testing.assert_array_equal(probabilities(with_axis, grey[TEST, :, :, None]), probabilities(fitted))


@pytest.mark.parametrize(("scale", "offset"), [(1 / 255, 0.0), (16 / 255, 0.0), (2 / 255, -1.0), (1.0, 0.0)])
def test_other_numbers_are_mapped_in_a_straight_line(scale: float, offset: float, fitted: ImageClassifier) -> None:
    """Reference: the uint8 pictures themselves, whose smallest value is 0 and largest 255."""
    moved = PICTURES * scale + offset
    estimator = ImageClassifier(**QUICK).fit(moved[TRAIN], LABELS[TRAIN])
    np.testing.assert_array_equal(probabilities(estimator, moved[TEST]), probabilities(fitted))
    beyond = np.where(PICTURES[TEST] == 255, offset + 1000 * scale, moved[TEST])
    np.testing.assert_array_equal(probabilities(estimator, beyond), probabilities(fitted))


def test_labels_are_of_any_kind(fitted: ImageClassifier) -> None:
    expected = probabilities(fitted)
    names = np.array(["가", "나", "다", "라", "마", "바", "사", "아", "자", "차"])
    for labels in (names[LABELS], names.astype(object)[LABELS], LABELS * 10 - 7, LABELS / 2):
        if labels.dtype.kind == "f":
            labels = labels * 2  # whole numbers as floats are classes
        estimator = ImageClassifier(**QUICK).fit(PICTURES[TRAIN], labels[TRAIN])
        np.testing.assert_array_equal(estimator.classes_, np.unique(labels))
        np.testing.assert_array_equal(probabilities(estimator), expected)
        np.testing.assert_array_equal(estimator.predict(PICTURES[TEST]), np.unique(labels)[expected.argmax(axis=1)])


def test_a_sigmoid_has_two_columns() -> None:
    even = LABELS % 2 == 0
    estimator = ImageClassifier(**QUICK, loss="binary_cross_entropy", label_smoothing=0.0)
    estimator.fit(PICTURES[TRAIN], even[TRAIN])
    assert estimator.classes_.tolist() == [False, True]
    assert probabilities(estimator).shape == (100, 2)
    with pytest.raises(ValueError, match="two classes, and there are 10"):
        estimator.fit(PICTURES[TRAIN], LABELS[TRAIN])


def test_weights_count() -> None:
    """Pictures with a wrong label and no weight: the network learns from the others."""
    targets = (LABELS[:400] >= 5).astype(int)
    wrong = np.arange(400) % 3 == 0
    labels = np.where(wrong, 1 - targets, targets)
    base = ImageClassifier("digits", filters=[16], epochs=8, keep="last", random_state=1)
    weighted = clone(base).fit(PICTURES[:400], labels, sample_weight=(~wrong).astype(float))
    plain = clone(base).fit(PICTURES[:400], labels)
    rest = (LABELS[400:] >= 5).astype(int)
    assert weighted.score(PICTURES[400:], rest) > plain.score(PICTURES[400:], rest)
    even = clone(base).set_params(epochs=1).fit(PICTURES[:100], labels[:100], sample_weight=np.full(100, 3.0))
    same = clone(base).set_params(epochs=1).fit(PICTURES[:100], labels[:100])
    np.testing.assert_array_equal(probabilities(even), probabilities(same))


def test_class_weights_have_scikit_learns_words() -> None:
    """`balanced` is n / (K n_k); both parts hold a fifth of the rare class, so that their weights are those of all.

    Labels say nothing of the pictures: the network can only learn how much each class counts.
    """
    names = np.where(np.arange(300) % 5 == 0, "드문", "흔한")
    base = ImageClassifier(**{**QUICK, "epochs": 8}, keep="last")

    def rare(weights: Any) -> Any:
        estimator = clone(base).set_params(class_weight=weights).fit(PICTURES[TRAIN], names)
        return probabilities(estimator)[:, estimator.classes_.tolist().index("드문")]

    balanced = rare("balanced")
    np.testing.assert_array_equal(rare("auto"), balanced)
    np.testing.assert_array_equal(rare({"흔한": 300 / (2 * 240), "드문": 300 / (2 * 60)}), balanced)
    assert rare({"드문": 100.0}).mean() > 0.7 > balanced.mean() > rare(None).mean() > 0.05
    with pytest.raises(ValueError, match="there is no class '드믄'"):
        clone(base).set_params(class_weight={"드믄": 2.0}).fit(PICTURES[TRAIN], names)


class Recorded(nn.Module):
    """A network that notes how many threads run it."""

    threads: set[int] = set()  # noqa: RUF012

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_outputs))
        self.layers(torch.zeros(1, in_channels, 8, 8))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.threads.add(torch.get_num_threads())
        found: torch.Tensor = self.layers(pictures)
        return found


@pytest.mark.parametrize(("n_jobs", "expected"), [(None, 1), (1, 1), (-1, 3), (2, 2), (-2, 2), (99, 3)])
def test_threads_are_those_asked_for(n_jobs: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom.sklearn.training_threads", lambda: 3)
    estimator = ImageClassifier(epochs=1, model=Recorded, n_jobs=n_jobs)
    before = torch.get_num_threads()
    Recorded.threads.clear()
    estimator.fit(PICTURES[:40], LABELS[:40])
    assert Recorded.threads - {before} <= {expected}  # the network's shape is tried before the threads are set
    assert expected in Recorded.threads
    Recorded.threads.clear()
    estimator.predict(PICTURES[:40])
    assert Recorded.threads == {expected}
    assert torch.get_num_threads() == before


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    estimator = ImageClassifier(epochs=1, model=Recorded).fit(PICTURES[:100], LABELS[:100])
    expected = probabilities(estimator)
    np.testing.assert_array_equal(probabilities(clone(estimator).fit(PICTURES[:100], LABELS[:100])), expected)
    np.testing.assert_array_equal(probabilities(pickle.loads(pickle.dumps(estimator))), expected)  # noqa: S301
    estimator.save(tmp_path / "own")
    np.testing.assert_array_equal(probabilities(ImageClassifier.load(tmp_path / "own", model=Recorded)), expected)
    with pytest.raises(NetloomError, match="Give it"):
        ImageClassifier.load(tmp_path / "own")
    with pytest.raises(ValueError, match="Give a function that makes one"):
        ImageClassifier(model=Recorded(1, 10)).fit(PICTURES[:100], LABELS[:100])


def test_pickles_hold_weights_as_safetensors(fitted: ImageClassifier) -> None:
    content = pickle.dumps(fitted)
    named = {str(argument) for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert not [name for name in named if name.split(".")[0] == "torch"]
    again = pickle.loads(content)  # noqa: S301
    np.testing.assert_array_equal(probabilities(again), probabilities(fitted))
    assert again.get_params() == fitted.get_params()
    assert (again.history_, again.recipe_) == (fitted.history_, fitted.recipe_)
    refitted = again.fit(PICTURES[TRAIN], LABELS[TRAIN])
    np.testing.assert_array_equal(probabilities(refitted), probabilities(fitted))


@pytest.mark.parametrize(
    "labels", [LABELS, np.array(list("가나다라마바사아자차"))[LABELS], LABELS.astype(str).astype(object)]
)
def test_a_saved_estimator_is_the_same_again(labels: Any, tmp_path: Path) -> None:
    estimator = ImageClassifier(**QUICK, random_state=4).fit(PICTURES[TRAIN], labels[TRAIN])
    estimator.save(tmp_path / "모델.safetensors")
    again = ImageClassifier.load(tmp_path / "모델.safetensors")
    np.testing.assert_array_equal(probabilities(again), probabilities(estimator))
    np.testing.assert_array_equal(again.classes_, estimator.classes_)
    assert again.classes_.dtype == estimator.classes_.dtype
    for name in ("history_", "recipe_", "n_iter_", "kept_epoch_", "n_features_in_"):
        assert getattr(again, name) == getattr(estimator, name)
    with pytest.raises(ValueError, match=r"X has 49 features, but ImageClassifier is expecting 64"):
        again.predict(PICTURES[:2, :7, :7])
    refitted = clone(again).fit(PICTURES[TRAIN], labels[TRAIN])
    np.testing.assert_array_equal(probabilities(refitted), probabilities(estimator))
    assert load_recipe(again.recipe_).to_yaml() == estimator.recipe_.to_yaml()


def test_labels_that_json_lacks_are_not_saved(tmp_path: Path) -> None:
    days = np.datetime64("2026-01-01") + LABELS.astype("timedelta64[D]")
    estimator = ImageClassifier(**QUICK).fit(PICTURES[TRAIN], days[TRAIN])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).classes_, np.unique(days))  # noqa: S301
    with pytest.raises(ValueError, match=r"Cannot save labels of datetime64\[D\]: expected text, numbers"):
        estimator.save(tmp_path / "days")
    assert not (tmp_path / "days").exists()


def test_damaged_files_are_refused(tmp_path: Path, fitted: ImageClassifier) -> None:
    path = tmp_path / "digits"
    with pytest.raises(RunError, match="There is no file"):
        ImageClassifier.load(path)
    fitted.save(path)
    whole = path.read_bytes()
    damaged = [b"", b"no tensors", whole[:-7], whole.replace(b"ImageClassifier/1", b"ImageClassifier/9")]
    damaged += [whole.replace(b'\\"dtype\\": \\"int64', b'\\"dtype\\": \\"int99')]
    assert all(content != whole for content in damaged)
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(RunError, match="is not an ImageClassifier that was saved, or it is damaged"):
            ImageClassifier.load(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(RunError, match="is not an ImageClassifier that was saved, or it is damaged"):
        ImageClassifier.load(path)
    values = [
        (b"0.003", b"-3e-3", "learning_rate"),
        (b'"sample\\": [8, 8]', b'"sample\\": [8, 9]', "do not fit pictures"),
    ]
    for before, after, message in values:
        assert whole.count(before) == 1
        path.write_bytes(whole.replace(before, after))
        with pytest.raises(NetloomError, match=message):
            ImageClassifier.load(path)


def test_what_cannot_be_used_is_told(fitted: ImageClassifier) -> None:
    x, y = PICTURES[:60], LABELS[:60]
    with pytest.raises(NotFittedError):
        ImageClassifier().predict(x)
    with pytest.raises(ValueError, match="needs at least 2 classes"):
        ImageClassifier().fit(x, np.zeros(60))
    with pytest.raises(ValueError, match=r"got 1x10 \(height x width\).*give image_shape="):
        ImageClassifier().fit(x.reshape(60, -1)[:, :10], y)
    with pytest.raises(ValueError, match="channels in front or at the end"):
        ImageClassifier().fit(np.zeros((60, 3, 8, 3)), y)
    with pytest.raises(ValueError, match=r"neither 1 \(grey\) nor 3"):
        ImageClassifier().fit(np.zeros((60, 8, 8, 2)), y)
    with pytest.raises(ValueError, match=r"do not fit image_shape=\(9, 9\)"):
        ImageClassifier(image_shape=(9, 9)).fit(x, y)
    with pytest.raises(ValueError, match="image_shape must be"):
        ImageClassifier(image_shape=8).fit(x, y)
    wide = np.zeros((60, 8, 8))
    wide[:2, 0, 0] = 1e308, -1e308
    with pytest.raises(ValueError, match=r"Values from -1e\+308 to 1e\+308 cannot be mapped"):
        ImageClassifier().fit(wide, y)
    with pytest.raises(ValueError, match="NaN"):
        ImageClassifier().fit(np.full((60, 8, 8), np.nan), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ImageClassifier().fit(x, y[:50])
    with pytest.raises(ValueError, match="at least one non-zero"):
        ImageClassifier().fit(x, y, sample_weight=np.zeros(60))
    with pytest.raises(ValueError, match="1d array of 60 numbers"):
        ImageClassifier().fit(x, y, sample_weight=np.ones((60, 2)))
    with pytest.raises(ValueError, match="n_jobs must be"):
        ImageClassifier(n_jobs=0).fit(x, y)
    with pytest.raises(ArgumentError, match="2 mistakes") as error:
        ImageClassifier(epochs=0, augmentation={"rotaton": 3}).fit(x, y)
    assert "epochs: " in str(error.value)
    assert "Did you mean 'rotation'" in str(error.value)
    with pytest.raises(ValueError, match=r"samples of shape \(64,\), expected \(8, 8\)"):
        fitted.predict(x.reshape(60, 64))
    # A loss that is no number is no mistake in what was given.
    with pytest.raises(NetloomError, match="learning_rate") as failed:
        ImageClassifier(**QUICK, normalization="none", optimizer="sgd", schedule=None, learning_rate=1e6).fit(x, y)
    assert not isinstance(failed.value, ValueError)


def test_nothing_is_said_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe("digits", {"filters": [8], "epochs": 2, "keep_every": 1, "tensorboard": True})
    ImageClassifier(recipe).fit(PICTURES[:100], LABELS[:100]).predict(PICTURES[:2])
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    ImageClassifier(**QUICK, verbose=1).fit(PICTURES[:100], LABELS[:100])
    assert len(re.findall(r"Epoch \d/2  loss ", capfd.readouterr().err)) == 2


def test_searches_reach_groups_through_a_pipeline() -> None:
    pipeline = make_pipeline(FunctionTransformer(lambda x: x.reshape(-1, 8, 8)), ImageClassifier(**QUICK))
    grid = {"imageclassifier__augmentation__rotation": [0, 15], "imageclassifier__epochs": [1, 3]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(PICTURES[:200].reshape(200, -1), LABELS[:200])
    assert search.best_params_["imageclassifier__epochs"] == 3
    assert len(search.cv_results_["params"]) == 4
    best = search.best_estimator_[-1]
    assert best.recipe_.augmentation.rotation == search.best_params_["imageclassifier__augmentation__rotation"]
    assert best.recipe_.augmentation.zoom == 0.1


def test_a_random_search_repeats(fitted: ImageClassifier) -> None:
    space = {"learning_rate": [1e-3, 3e-3, 1e-2], "filters": [[4], [8]], "optimizer": ["adam", "adamw"]}
    found = [
        RandomizedSearchCV(fitted, space, n_iter=3, cv=2, random_state=0, error_score="raise")
        .fit(PICTURES[:200], LABELS[:200])
        .cv_results_["split0_test_score"]
        .tolist()
        for _ in range(2)
    ]
    assert found[0] == found[1]


def test_a_failing_setting_does_not_end_a_search() -> None:
    search = GridSearchCV(ImageClassifier(**QUICK), {"dropout": [0.1, 2.0]}, cv=2, error_score=0.0)
    with pytest.warns(match="2 fits failed"):
        search.fit(PICTURES[:200], LABELS[:200])
    assert search.best_params_ == {"dropout": 0.1}


def test_bayesian_search_of_scikit_optimize() -> None:
    from skopt import BayesSearchCV
    from skopt.space import Categorical, Integer, Real

    space = {
        "learning_rate": Real(1e-4, 1e-1, prior="log-uniform"),
        "batch_size": Integer(8, 64),
        "optimizer": Categorical(["adam", "adamw"]),
        "augmentation__rotation": Real(0, 30),
    }
    search = BayesSearchCV(
        ImageClassifier(**QUICK), space, n_iter=4, cv=2, random_state=0, optimizer_kwargs={"n_initial_points": 2}
    )
    search.fit(PICTURES[:200], LABELS[:200])
    assert len(search.cv_results_["params"]) == 4
    assert set(search.best_params_) == set(space)
    assert search.best_estimator_.recipe_.batch_size == search.best_params_["batch_size"]


def test_threads_of_one_process_give_the_bits_of_one_after_the_other() -> None:
    arguments = (ImageClassifier(**QUICK), PICTURES[:200], LABELS[:200])
    alone = cross_val_score(*arguments, cv=4, scoring="neg_log_loss")
    with joblib.parallel_config("threading", n_jobs=3):
        np.testing.assert_array_equal(cross_val_score(*arguments, cv=4, scoring="neg_log_loss"), alone)


@pytest.mark.slow
def test_processes_give_the_bits_of_one_after_the_other() -> None:
    scores = [
        cross_val_score(ImageClassifier(**QUICK), PICTURES[:200], LABELS[:200], cv=4, scoring="neg_log_loss", n_jobs=n)
        for n in (None, 2)
    ]
    np.testing.assert_array_equal(*scores)
    limits = joblib.Parallel(n_jobs=2)(joblib.delayed(torch.get_num_threads)() for _ in range(2))
    assert max(limits) <= max(1, joblib.cpu_count() // 2)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    accuracy = float(capsys.readouterr().out.splitlines()[0].split("}")[-1])
    assert accuracy == names["search"].score(names["test_X"], names["test_y"])
    assert accuracy > 0.8
    assert (tmp_path / "digits.safetensors").is_file()


def test_the_page_names_every_argument_of_its_own() -> None:
    text = PAGE.read_text(encoding="utf-8")
    own = [name for name in inspect.signature(ImageClassifier).parameters if name not in RECIPE_KEYS]
    assert [name for name in own if f"| `{name}` |" not in text] == []
