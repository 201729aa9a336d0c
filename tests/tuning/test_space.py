from __future__ import annotations

from typing import Any

import pytest

from netloom.errors import RecipeError
from netloom.recipe import key_problem, load_recipe
from netloom.tuning.space import Condition, Dimension, arrange, grid_of, label_of, parse_dimension
from netloom.workflows.spaces import space_for, space_names
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


def test_labels_are_what_people_would_write() -> None:
    values = (None, True, [32, 64], (1,), 0.1, 1e-05, 3, "adam")
    assert [label_of(v) for v in values] == ["null", "true", "32-64", "1", "0.1", "1e-05", "3", "adam"]
    assert label_of(0.123456789) == "0.123456789"
