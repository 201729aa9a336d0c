from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from netloom.errors import RecipeError
from netloom.recipe import key_problem, load_recipe, recipe_names
from netloom.tuning.grid import grid_length, grid_of, grid_values
from netloom.tuning.space import Condition, Dimension, arrange, label_of, values_of_dimension
from netloom.tuning.space_text import parse_dimension
from netloom.workflows.spaces import settings_of_pictures, space_for, space_names
from netloom.workflows.study_result import values_of


def parsed(key: str, value: Any) -> Dimension:
    return parse_dimension(key, value, key_problem)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("dropout", "0.1..0.5", Dimension("dropout", "float", 0.1, 0.5)),
        ("dropout", "0..0.9", Dimension("dropout", "float", 0.0, 0.9)),
        ("learning_rate", "1e-4..1e-2:log", Dimension("learning_rate", "float", 1e-4, 1e-2, log=True)),
        ("learning_rate", " 1 .. 2 ", Dimension("learning_rate", "float", 1.0, 2.0)),
        ("batch_size", "16..128:step=16", Dimension("batch_size", "int", 16, 128, step=16)),
        ("batch_size", "8..64:log", Dimension("batch_size", "int", 8, 64, log=True)),
        ("optimizer", "adam,sgd", Dimension("optimizer", "choice", choices=("adam", "sgd"))),
        ("filters", "32-64,32-64-128", Dimension("filters", "choice", choices=("32-64", "32-64-128"))),
        ("filters", "[32, 64], [64]", Dimension("filters", "choice", choices=([32, 64], [64]))),
        ("learning_rate", "1e-4,0.01", Dimension("learning_rate", "choice", choices=(1e-4, 0.01))),
        ("early_stopping", "null", Dimension("early_stopping", "choice", choices=(None,))),
        ("augmentation.rotation", "0..40", Dimension("augmentation.rotation", "float", 0, 40)),
        (
            "momentum",
            "0.5..0.99 if optimizer=sgd,rmsprop",
            Dimension("momentum", "float", 0.5, 0.99, when=Condition("optimizer", ("sgd", "rmsprop"))),
        ),
        ("dropout", (0.1, 0.5), Dimension("dropout", "float", 0.1, 0.5)),
        ("optimizer", ("adam", "muon"), Dimension("optimizer", "choice", choices=("adam", "muon"))),
        ("optimizer", {"choices": ("adam", "muon")}, Dimension("optimizer", "choice", choices=("adam", "muon"))),
        ("optimizer", ["adam", "muon"], Dimension("optimizer", "choice", choices=("adam", "muon"))),
        ("dropout", {"low": 0, "high": 0.5, "step": 0.1}, Dimension("dropout", "float", 0, 0.5, step=0.1)),
        (
            "momentum",
            {"low": 0.5, "high": 0.9, "when": {"optimizer": "sgd"}},
            Dimension("momentum", "float", 0.5, 0.9, when=Condition("optimizer", ("sgd",))),
        ),
    ],
)
def test_dimensions_are_read_as_people_write_them(key: str, text: Any, expected: Dimension) -> None:
    found = parsed(key, text)
    assert found == expected
    assert Dimension.from_json(found.to_json()) == found


def test_a_dimension_written_out_is_read_as_the_same() -> None:
    texts = {"dropout": "0.1..0.5", "optimizer": "adam,sgd", "momentum": "0.5..0.9 if optimizer=sgd"}
    for key, text in texts.items():
        dimension = parsed(key, text)
        assert parsed(key, str(dimension).partition("=")[2]) == dimension


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dropot", "0..1", "Did you mean 'dropout'"),
        ("augmentation.rotatoin", "0..1", "Did you mean 'rotation'"),
        ("dropout", "0.5..0.1", "the first must be the smaller"),
        ("dropout", "0.5..0.5", "the first must be the smaller"),
        ("dropout", "0.1..1.5", "less than 1"),
        ("learning_rate", "0..1:log", "above 0"),
        ("learning_rate", "1e-4..1:log:step=0.1", "linear range"),
        ("learning_rate", "1e-4..1:exp", "'exp'"),
        ("learning_rate", "1e-4..x", "not understood"),
        ("batch_size", "8..64:step=0.5", "whole"),
        ("batch_size", "8.5..64", "batch_size"),
        ("optimizer", "adam,sgdd", "optimizer"),
        ("optimizer", "adam,adam", "twice"),
        ("learning_rate", "1..2.5:int", "whole numbers"),
        ("dropout", np.array([0.1, 0.5]), "ndarray"),
        ("optimizer", [], "no choices"),
        ("dropout", {"low": 0.1}, "low and high"),
        ("dropout", {"low": 0.1, "hihg": 0.2}, "'hihg'"),
        ("dropout", {"choices": [0.1], "log": True}, "choices"),
        ("dropout", {"low": "a", "high": 1}, "numbers"),
        ("dropout", {"low": 0, "high": 0.5, "when": ["x"]}, "when"),
    ],
)
def test_a_mistake_is_told_with_the_key(key: str, value: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(key, value)
    assert words in str(caught.value)
    assert key.split(".")[0][:4] in str(caught.value)


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ([], "nothing to search"),
        (["momentum=0.5..0.9 if optimizr=sgd", "optimizer=adam,sgd"], "Did you mean 'optimizer'"),
        (["momentum=0.5..0.9 if optimizer=rmsprop", "optimizer=adam,sgd"], "none of its choices"),
        (["dropout=0,0.1 if optimizer=adam", "optimizer=adam,sgd if dropout=0"], "circle"),
        (["small-dta"], "Did you mean 'small-data'"),
        (["dropout="], "expected KEY="),
        (["image_size=32..64"], "at most 8"),
        (["image_size=8,16,32", "resize=stretch,crop,pad"], "9 combinations"),
        (["image_size=32,64 if optimizer=adam", "optimizer=adam,sgd"], "under a condition"),
        (["split_seed=0..9"], "compared on the same pictures"),
        (["seed=0..9"], "the luckiest seed"),
        (["time_limit_minutes=1..9"], "how a trial is executed"),
        (["augmentation=null", "augmentation.rotation=0..40"], "one replaces the other"),
        (["shards=0,4"], "how a trial is executed"),
        (["image_size=[64, 64],64"], "names a choice twice"),
        (["momentum=0.5,0.9"], "None of 20 random points"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(spaces: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        space_for(spaces, load_recipe("photos"))


def test_conditions_come_behind_what_they_look_at() -> None:
    dimensions = arrange(
        [parsed("momentum", "0.5..0.9 if optimizer=sgd"), parsed("dropout", "0..0.5"), parsed("optimizer", "adam,sgd")]
    )
    assert [d.key for d in dimensions] == ["dropout", "optimizer", "momentum"]
    assert dimensions[2].matters({"optimizer": "sgd"})
    assert not dimensions[2].matters({"optimizer": "adam"})
    assert not dimensions[2].matters({})


@pytest.mark.parametrize("name", space_names())
def test_the_values_of_a_shipped_space_are_values_of_the_recipe(name: str) -> None:
    recipe = load_recipe("photos")
    dimensions = space_for(name, recipe)
    assert len(dimensions) >= 5
    for dimension in dimensions:
        for position in (0.0, 0.5, 0.999):
            assert key_problem(dimension.key, dimension.at(position)) is None
    load_recipe(recipe, {d.key: d.at(0.5) for d in dimensions if d.when is None})


def test_the_default_recipe_lies_in_the_default_space() -> None:
    recipe = load_recipe("photos")
    dimensions = space_for("default", recipe)
    values = values_of(recipe, dimensions)
    assert all(dimension.to_storage(values[dimension.key]) is not None for dimension in dimensions)


def test_a_shipped_space_leaves_out_what_the_model_does_not_have() -> None:
    assert "filters" in {d.key for d in space_for("architecture", load_recipe("photos"))}
    assert "filters" not in {d.key for d in space_for("architecture", load_recipe("photos", {"model": "lenet5"}))}


def test_of_a_key_given_twice_the_last_counts() -> None:
    found = space_for(["default", "dropout=0.2,0.3"], load_recipe("photos"))
    assert next(d for d in found if d.key == "dropout").choices == (0.2, 0.3)


@pytest.mark.parametrize(
    "dimension",
    [
        parsed("dropout", "0.1..0.5"),
        parsed("dropout", "0.1..0.5:step=0.1"),
        parsed("learning_rate", "1e-4..1e-1:log"),
        parsed("batch_size", "3..7"),
        parsed("batch_size", "1..64:log"),
        parsed("batch_size", "16..100:step=16"),
        parsed("optimizer", "adam,sgd,nadam"),
    ],
    ids=str,
)
def test_positions_cover_the_dimension_and_go_to_the_storage_and_back(dimension: Dimension) -> None:
    distribution = dimension.distribution()
    values = [dimension.at(i / 997) for i in range(997)]
    assert values == sorted(values) or dimension.kind == "choice"
    for value in values:
        stored = dimension.to_storage(value)
        assert distribution._contains(distribution.to_internal_repr(stored))
        assert dimension.from_storage(stored) == value
    if dimension.kind != "float" or dimension.step:
        counts = {value: values.count(value) for value in values}
        if not dimension.log:
            assert max(counts.values()) - min(counts.values()) <= 2
    if dimension.key == "batch_size" and dimension.step is None:
        assert {values[0], values[-1]} == {int(dimension.low), int(dimension.high)}


def test_values_outside_of_a_dimension_do_not_go_to_the_storage() -> None:
    for dimension, value in (
        (parsed("dropout", "0.1..0.5"), 0.6),
        (parsed("dropout", "0.1..0.5:step=0.1"), 0.25),
        (parsed("dropout", "0.1..0.5"), None),
        (parsed("optimizer", "adam,sgd"), "muon"),
        (parsed("batch_size", "8..64"), True),
    ):
        with pytest.raises(ValueError, match=str(value)):
            dimension.to_storage(value)


def test_a_grid_holds_each_combination_once_and_leaves_out_what_does_not_matter() -> None:
    dimensions = arrange(
        [
            parsed("optimizer", "adam,sgd"),
            parsed("momentum", "0.5,0.9 if optimizer=sgd"),
            parsed("batch_size", "16..48:step=16"),
        ]
    )
    found = grid_of(dimensions, 5)
    assert len(found) == 3 * (1 + 2)
    assert len({tuple(sorted(c.items())) for c in found}) == len(found)
    assert all(("momentum" in c) == (c["optimizer"] == "sgd") for c in found)
    log = grid_of([parsed("learning_rate", "1e-4..1:log")], 5)
    assert [c["learning_rate"] for c in log] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


@pytest.mark.parametrize("low", [2e-4, 0.003, 0.7, 2e-5])
@pytest.mark.parametrize("high", [0.9, 0.0071, 1.7])
def test_a_logarithmic_range_stays_within_its_ends(low: float, high: float) -> None:
    """exp(log(x)) is less than x for 2e-4, 0.003 and 2e-5."""
    if low >= high:
        return
    dimension = parse_dimension("rate", f"{low}..{high}:log", lambda key, value: None)
    for value in (*grid_values(dimension, 5), *(dimension.at(x) for x in (0.0, 1e-300, 1 - 1e-12, 1.0))):
        assert low <= dimension.to_storage(value) <= high
    assert grid_values(dimension, 5)[::4] == [low, high]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0..0.9:step=0.3", [0.0, 0.3, 0.6, 0.9]),
        ("0.1..0.7:step=0.2", [0.1, 0.3, 0.5, 0.7]),
        ("0..0.95:step=0.3", [0.0, 0.3, 0.6, 0.9]),
        ("1e-4..5e-4:step=1e-4", [1e-4, 2e-4, 3e-4, 4e-4, 5e-4]),
    ],
)
def test_a_range_with_steps_has_its_last_value(text: str, values: list[float]) -> None:
    dimension = parsed("dropout", text)
    assert values_of_dimension(dimension) == values
    assert [dimension.at(i / len(values)) for i in range(len(values))] == values
    distribution = dimension.distribution()  # which warns where it has to take a value away
    assert distribution._contains(values[-1])
    assert dimension.from_storage(dimension.low + dimension.step * (len(values) - 1)) == values[-1]


def test_combinations_are_counted_before_they_are_listed() -> None:
    shipped = space_for("default", load_recipe("photos"))
    assert grid_length(shipped, 5) == len(grid_of(shipped, 5))
    conditional = arrange(
        [
            parsed("optimizer", "adam,sgd,rmsprop"),
            parsed("momentum", "0.5,0.9 if optimizer=sgd,rmsprop"),
            parsed("nesterov", "true,false if momentum=0.9"),
            parsed("batch_size", "8..64:step=8"),
        ]
    )
    assert grid_length(conditional, 5) == len(grid_of(conditional, 5)) == 8 * (1 + 2 * (1 + 2))
    large = space_for("small-data", load_recipe("photos"))
    with pytest.raises(RecipeError, match=r"has [\d,]+ combinations.*--sampler qmc or random"):
        grid_of(large, 5)
    endless = [parsed("weight_decay", "0..1:step=1e-9")]
    with pytest.raises(RecipeError, match="1,000,000,001 combinations"):
        grid_of(endless, 5)


def test_squares_are_one_number_however_they_are_written() -> None:
    recipe = load_recipe("photos")
    written = space_for({"image_size": [(64, 64), [32, 48], 16]}, recipe)
    assert written[0].choices == (64, [32, 48], 16)
    assert Dimension.from_json(json.loads(json.dumps(written[0].to_json()))) == written[0]
    assert settings_of_pictures(written) == [{"image_size": 64}, {"image_size": [32, 48]}, {"image_size": 16}]
    conditional = space_for(["image_size=[64,64],32", "batch_size=8,16 if image_size=[64,64]"], recipe)
    assert conditional[1].matters({"image_size": 64})


KEYS_OF_SHIPPED = {name: {d.key for d in space_for(name, load_recipe("photos"))} for name in space_names()}


@pytest.mark.parametrize("recipe_name", recipe_names())
def test_what_a_shipped_space_keeps_for_a_recipe_makes_recipes(recipe_name: str) -> None:
    """Every point: no trial of a search over a shipped space is refused."""
    recipe = load_recipe(recipe_name)
    generator = np.random.default_rng(0)
    for name in space_names():
        told: list[str] = []
        if recipe_name == "transfer-features":
            with pytest.raises(RecipeError, match=r"Nothing of the space changes.*transfer.classifier"):
                space_for(name, recipe, told.append)
            continue
        dimensions = space_for(name, recipe, told.append)
        assert len(dimensions) >= 1
        for dimension in dimensions:
            assert dimension.kind != "choice" or len(dimension.choices) > 1
        for _ in range(4):
            load_recipe(recipe, {d.key: d.at(generator.random()) for d in dimensions})
        left_out = KEYS_OF_SHIPPED[name] - {d.key for d in dimensions}
        assert left_out == {line.split()[1] for line in told if "is not searched" in line}


def test_what_a_recipe_refuses_is_left_out_of_a_shipped_space_alone() -> None:
    told: list[str] = []
    kept = {d.key: d for d in space_for("default", load_recipe("cifar10-alexnet"), told.append)}
    assert "optimizer" not in kept
    assert any("optimizer is not searched" in line and "momentum" in line for line in told)
    own = ["default", "optimizer=sgd,rmsprop"]
    told.clear()
    assert {d.key: d for d in space_for(own, load_recipe("cifar10-alexnet"), told.append)}["optimizer"].choices
    assert not any("optimizer" in line for line in told)
    assert "label_smoothing" not in {d.key for d in space_for("default", load_recipe("cats-dogs-scratch"))}


def test_a_classifier_that_is_solved_at_once_has_no_keys_of_a_training() -> None:
    recipe = load_recipe("transfer-features")
    with pytest.raises(RecipeError, match="learning_rate cannot be searched over: the classifier logistic is solved"):
        space_for("learning_rate=1e-4..1e-2:log", recipe)
    with pytest.raises(RecipeError, match=r"augmentation\.rotation cannot"):
        space_for("augmentation.rotation=0..40", recipe)
    viewed = load_recipe(recipe, {"transfer.views": 2, "augmentation": {"rotation": 5}})
    assert space_for("augmentation.rotation=0..40", viewed)
    assert space_for("image_size=160,224", recipe)
    head = space_for(["transfer.classifier=logistic,network", "default"], recipe)
    assert "learning_rate" in {d.key for d in head}


def test_labels_are_what_people_would_write() -> None:
    values = (None, True, [32, 64], (1,), 0.1, 1e-05, 3, "adam")
    assert [label_of(v) for v in values] == ["null", "true", "32-64", "1", "0.1", "1e-05", "3", "adam"]
    assert label_of(0.123456789) == "0.123456789"
